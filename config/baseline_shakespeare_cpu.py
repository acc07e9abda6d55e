"""The baseline for a CPU: the CPU recipe of nanoGPT's README, which takes about a minute.

`python scripts/baseline.py --cpu` trains it and checks its best validation loss: at most 1.92 nats
per character on the whole validation split. nanoGPT itself reaches 1.898, 1.898 and 1.906 with
seeds 1337 to 1339.
"""

arch_preset = "legacy"

# Data: validation on every character of Tiny Shakespeare's last tenth
dataset = "shakespeare_char"
eval_tokens = 0
batch_size = 12
gradient_accumulation_steps = 1

# 0.8M parameters
n_layer = 4
n_head = 4
n_embd = 128
block_size = 64
bias = False
dropout = 0.0

max_iters = 2000
lr_decay_iters = 2000
warmup_iters = 100
learning_rate = 1e-3
min_lr = 1e-4
beta2 = 0.99  # a step has few tokens
weight_decay = 0.1

# Nothing that trades accuracy for speed
device = "cpu"
dtype = "float32"
attention_backend = "manual"
compile = False

eval_interval = 250
log_interval = 100
keep_checkpoints = 1
