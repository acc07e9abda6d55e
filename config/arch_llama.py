"""LLaMA: rotary positions, RMSNorm before each sublayer, SwiGLU, no biases, untied output head."""

arch_preset = "llama"
