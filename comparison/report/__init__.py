"""The comparison as one page of HTML that needs nothing but a browser.

`page.py` puts it together from a template, a style and a script that stand beside it; `curves.py`
and `intervals.py` are what is drawn; the rest are its sections. Every number in it is one of the
JSON document, which the page carries.
"""
