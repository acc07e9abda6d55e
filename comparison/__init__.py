"""Compare runs: which architecture is better, by how much, at what cost, and with what confidence.

`runs` loads the runs, and `groups` groups those that differ only by seed. `curves` compares them at
equal budgets, `judging` gives the verdicts with the statistics of `inference`, and `effects`
estimates the effects of a factorial design. `findings` contains the results; `exports` and `tables`
print them, and `figures` prepares what `plot` and `report` draw. docs/statistics.md explains the
protocol and each statistic.
"""
