"""The comparison as a single self-contained HTML page.

`page.py` renders the Jinja2 templates in `templates/` with their style and scripts; the other
modules prepare their data. Every number on the page comes from the JSON document, which the page
contains.
"""
