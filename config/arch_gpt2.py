"""GPT-2: learned positions, LayerNorm before each sublayer, GELU, biases, tied output head."""

arch_preset = "gpt2"
