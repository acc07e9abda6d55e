"""Falcon-H1 at a size for a laptop, with all scales at 1.

python train.py config/arch_falcon_h1_tiny.py config/run_laptop.py
"""

arch_preset = "falcon_h1"
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 128
ffn_hidden = 256
mamba_n_head = 6
mamba_head_dim = 32
mamba_state_dim = 32
block_size = 128
