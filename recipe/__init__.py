"""Training components chosen by the config: schedules, objectives, optimizers, log sinks."""
