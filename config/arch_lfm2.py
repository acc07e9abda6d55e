"""LFM2 1.2B (Liquid AI 2025, arXiv 2511.23404): 1,170,340,608 parameters with its vocabulary of
65,536."""

arch_preset = "lfm2"
n_layer = 16
n_head = 32
n_kv_head = 8
n_embd = 2048
ffn_hidden = 8192
mixer = "+".join([*["short_conv*2+attention"] * 3, *["short_conv+attention"] * 3])
block_size = 128_000
