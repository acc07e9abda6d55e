"""nanochat d32 (Karpathy 2025), as transformers has it: 1,879,048,192 parameters with its
vocabulary of 65,536."""

arch_preset = "nanochat"
n_layer = 32
n_head = 16
n_embd = 2048
ffn_hidden = 8192
block_size = 2048
