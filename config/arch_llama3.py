"""LLaMA 3.2 1B (Meta 2024, arXiv 2407.21783): 1,235,814,400 parameters with its vocabulary of
128,256.

Without the RoPE scaling by which it was extended from 8,192 to 131,072 tokens. LLaMA 3 8B and
larger models have untied heads.
"""

arch_preset = "llama3"
n_layer = 16
n_head = 32
n_kv_head = 8
n_embd = 2048
ffn_hidden = 8192
block_size = 8192
weight_tying = True
