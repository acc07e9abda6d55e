"""Qwen3-Next 80B-A3B (Qwen Team 2025): 79,674,391,296 parameters, 3B of them active, with its
vocabulary of 151,936."""

arch_preset = "qwen3_next"
n_layer = 48
n_head = 16
n_kv_head = 2
head_dim = 256
n_embd = 2048
ffn_hidden = 512
n_experts = 512
n_experts_per_token = 10
linear_n_head = 16
linear_n_value_head = 32
linear_key_dim = 128
linear_value_dim = 128
block_size = 262_144
