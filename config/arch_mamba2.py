"""Mamba-2 130M (Dao and Gu 2024, arXiv 2405.21060): 128,989,632 parameters with its vocabulary of
50,288.

It was trained on sequences of 2,048 tokens; longer texts can be generated.
"""

arch_preset = "mamba2"
n_layer = 24
n_embd = 768
block_size = 2048
