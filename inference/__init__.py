"""Statistical inference from numbers alone: differences, intervals, verdicts."""
