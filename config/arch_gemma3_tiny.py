"""Gemma 3 at a size for a laptop, with a window in three of four layers instead of five of six.

python train.py config/arch_gemma3_tiny.py config/run_laptop.py
"""

arch_preset = "gemma3"
n_layer = 4
n_head = 4
n_kv_head = 1
n_embd = 128
ffn_hidden = 384
block_size = 128
embedding_scale = 128**0.5
sliding_window = "32*3+none"
rope_theta = "10000*3+1000000"
