"""A small character-level model of Tiny Shakespeare with nanoGPT's flat keys.

Minutes on one GPU; on a CPU add --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --batch_size=12
--max_iters=2000 --lr_decay_iters=2000 --dropout=0.
"""

dataset = "shakespeare_char"
batch_size = 64
block_size = 256
gradient_accumulation_steps = 1

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # a step has few tokens
warmup_iters = 100

eval_interval = 250
eval_tokens = 0  # the whole validation split
log_interval = 10
