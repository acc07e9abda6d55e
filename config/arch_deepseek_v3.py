"""DeepSeek-V3 (DeepSeek-AI 2024, arXiv 2412.19437): 671,026,404,352 parameters, 37B of them active,
with its vocabulary of 129,280, and 11,610,067,968 more in the module for multi-token prediction,
which only training uses.

It has no RoPE scaling; the published model uses one that extends it from 4,096 to 163,840 tokens.
"""

arch_preset = "deepseek_v3"
n_layer = 61
n_head = 128
n_embd = 7168
q_lora_rank = 1536
kv_lora_rank = 512
qk_nope_head_dim = 128
qk_rope_head_dim = 64
v_head_dim = 128
ffn_hidden = "18432*3+2048*"
n_experts = 256
n_experts_per_token = 8
n_expert_groups = 8
n_groups_per_token = 4
block_size = 4096
