"""DeepSeek-V3 at a size for a laptop.

python train.py config/arch_deepseek_v3_tiny.py config/run_laptop.py
"""

arch_preset = "deepseek_v3"
n_layer = 4
n_head = 4
n_embd = 128
q_lora_rank = 64
kv_lora_rank = 32
qk_nope_head_dim = 32
qk_rope_head_dim = 16
v_head_dim = 32
ffn_type = "swiglu+moe*"
ffn_hidden = "384+96*"
n_experts = 8
n_experts_per_token = 2
block_size = 128
