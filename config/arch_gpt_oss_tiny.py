"""gpt-oss at a size for a laptop.

python train.py config/arch_gpt_oss_tiny.py config/run_laptop.py
"""

arch_preset = "gpt_oss"
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 128
ffn_hidden = 96
n_experts = 8
n_experts_per_token = 2
sliding_window = "32+none"
block_size = 128
