"""nanochat at a size for a laptop.

python train.py config/arch_nanochat_tiny.py config/run_laptop.py
"""

arch_preset = "nanochat"
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128
