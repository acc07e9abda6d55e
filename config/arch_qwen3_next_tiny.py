"""Qwen3-Next at a size for a laptop.

python train.py config/arch_qwen3_next_tiny.py config/run_laptop.py
"""

arch_preset = "qwen3_next"
n_layer = 4
n_head = 4
n_kv_head = 1
n_embd = 128
ffn_hidden = 96
n_experts = 8
n_experts_per_token = 2
linear_n_head = 2
linear_n_value_head = 4
linear_key_dim = 32
linear_value_dim = 32
block_size = 128
