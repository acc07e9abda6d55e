"""modded-nanogpt, the record of 2024-10-14, at a size for a laptop.

python train.py config/arch_modded_nanogpt_tiny.py config/run_laptop.py
"""

arch_preset = "modded_nanogpt"
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128
