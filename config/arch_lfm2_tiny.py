"""LFM2 at a size for a laptop.

python train.py config/arch_lfm2_tiny.py config/run_laptop.py
"""

arch_preset = "lfm2"
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 128
ffn_hidden = 384
block_size = 128
