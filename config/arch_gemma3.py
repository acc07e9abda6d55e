"""Gemma 3 1B (Gemma Team 2025, arXiv 2503.19786): 999,885,952 parameters with its vocabulary of
262,144."""

arch_preset = "gemma3"
n_layer = 26
n_head = 4
n_kv_head = 1
head_dim = 256
n_embd = 1152
ffn_hidden = 6912
block_size = 32_768
embedding_scale = 1152**0.5
