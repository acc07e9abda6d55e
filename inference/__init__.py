"""What can be concluded from numbers alone: differences, intervals, verdicts."""
