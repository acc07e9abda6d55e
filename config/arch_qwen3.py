"""Qwen3 0.6B (Qwen Team 2025, arXiv 2505.09388): 596,049,920 parameters with its vocabulary of
151,936."""

arch_preset = "qwen3"
n_layer = 28
n_head = 16
n_kv_head = 8
head_dim = 128
n_embd = 1024
ffn_hidden = 3072
block_size = 40_960
