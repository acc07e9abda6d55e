"""gpt-oss 20B (OpenAI 2025, arXiv 2508.10925): 20,914,757,184 parameters, 3.6B of them active, with
its vocabulary of 201,088.

Without the RoPE scaling by which it was extended from 4,096 to 131,072 tokens.
"""

arch_preset = "gpt_oss"
n_layer = 24
n_head = 64
n_kv_head = 8
head_dim = 64
n_embd = 2880
ffn_hidden = 2880
n_experts = 32
block_size = 4096
