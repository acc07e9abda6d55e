"""Rotary positions and LayerNorm without bias around GPT-2's GELU network; tied output head."""

arch_preset = "hybrid"
