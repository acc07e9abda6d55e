"""Mamba-2 at a size for a laptop.

python train.py config/arch_mamba2_tiny.py config/run_laptop.py --n_head=default

run_laptop.py sets n_head, which has no use in a model without attention.
"""

arch_preset = "mamba2"
n_layer = 4
n_embd = 128
mamba_head_dim = 32
mamba_state_dim = 32
block_size = 128
