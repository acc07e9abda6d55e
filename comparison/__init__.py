"""What runs show: which architecture is better, by how much, at what cost, and how surely.

`runs` are loaded and gathered into `groups` that differ only by seed; their `curves` are read at
equal budgets; means are judged by `inference` and put into `verdicts`; `effects` of a factorial
design are told apart. `findings` holds all that; `exports` and `tables` print it, and `figures`
prepares what `plot` and `report` draw. The protocol and each statistic are explained in
docs/statistics.md.
"""
