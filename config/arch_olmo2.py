"""OLMo 2 1B (OLMo Team 2025, arXiv 2501.00656): 1,484,916,736 parameters with its vocabulary of
100,352."""

arch_preset = "olmo2"
n_layer = 16
n_head = 16
n_embd = 2048
ffn_hidden = 8192
block_size = 4096
