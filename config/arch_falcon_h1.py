"""Falcon-H1 0.5B (Zuo et al. 2025, arXiv 2507.22448): 521,411,104 parameters with its vocabulary of
32,784.

Its scales follow from muP for this size.
"""

arch_preset = "falcon_h1"
n_layer = 36
n_head = 8
n_kv_head = 2
head_dim = 64
n_embd = 1024
ffn_hidden = 2048
mamba_n_head = 24
block_size = 16384

embedding_scale = 5.656854249492381
logit_scale = 0.0390625
attention_scale = 0.39062499999999994 / 8  # scale of the keys / sqrt(head_dim)
attention_out_scale = 0.9375
mamba_in_scale = 1.25
mamba_out_scale = 0.23570226039551587
mamba_z_scale = 0.3535533905932738
mamba_x_scale = 0.25
mamba_b_scale = 0.3535533905932738
mamba_c_scale = 0.5
mamba_dt_scale = 0.3535533905932738
glu_gate_scale = 0.8838834764831844
glu_out_scale = 0.5859375
