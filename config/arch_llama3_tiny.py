"""LLaMA 3 at a size for a laptop.

python train.py config/arch_llama3_tiny.py config/run_laptop.py
"""

arch_preset = "llama3"
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 128
ffn_hidden = 352
block_size = 128
weight_tying = True
