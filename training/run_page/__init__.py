"""The report page of a run, `report.html` next to its log, rewritten during training.

`series.py` stores the curves, `page.py` builds and writes the page, and `run.js` draws and reloads
it. Code shared with the comparison page is in `pages/`.
"""
