"""Parts of training that a config chooses: learning-rate schedules, objectives, optimizers."""
