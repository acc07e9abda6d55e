"""What the pages of runs and of comparisons share: one look, one template, one way to draw.

A page is one file that needs nothing but a browser. `rendering.py` fills a Jinja2 template that
extends `templates/base.html`; `style.css` and the scripts go into the page as they are. `page.js`
has the theme, links to a view, sorted tables and downloads, `chart.js` draws curves. The package
is below `training/`, which writes the page of a run, and imports nothing of the project.
"""
