"""The comparison as one page of HTML that needs nothing but a browser.

`page.py` fills the Jinja2 templates in `templates/`, with the style and the script that stand
beside it; the other modules prepare what the templates show, as plain data. Every number in it is
one of the JSON document, which the page carries.
"""
