"""GPT-2's GELU network with rotary positions and LayerNorm without bias; tied LM head."""

arch_preset = "hybrid"
