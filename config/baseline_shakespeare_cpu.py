"""The clean control for a CPU: the recipe that nanoGPT's README has for one, about a minute long.

`python scripts/baseline.py --cpu` trains it and checks the bar: a best validation loss of at most
1.92 nats per character on the whole validation split. nanoGPT itself measures 1.898, 1.898 and
1.906 for seeds 1337 to 1339.
"""

arch_preset = "legacy"

# Data: every character of Tiny Shakespeare's last tenth is validated on
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

# Nothing that trades exactness for speed
device = "cpu"
dtype = "float32"
attention_backend = "manual"
compile = False

eval_interval = 250
log_interval = 100
keep_checkpoints = 1
