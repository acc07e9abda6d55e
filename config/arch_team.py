"""model_v1: the same parts as llama."""

arch_preset = "team"
