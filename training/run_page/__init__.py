"""The page of one run, `report.html` beside its log, rewritten while it trains.

`series.py` keeps the curves, `page.py` says what the page shows and when it is written; `run.js`
draws it and loads it again. What it has in common with the page of a comparison is in `pages/`.
"""
