"""The clean control for a GPU: nanoGPT's character-level Tiny Shakespeare, exact throughout.

`python scripts/baseline.py` trains it and checks the bar: a best validation loss of at most 1.5435
nats per character on the whole validation split, which is the 1.47 of nanoGPT's README + 5 %.
"""

arch_preset = "legacy"

# Data: every character of Tiny Shakespeare's last tenth is validated on
dataset = "shakespeare_char"
eval_tokens = 0
batch_size = 64
gradient_accumulation_steps = 1

# 10.7M parameters
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
bias = False
dropout = 0.2

max_iters = 5000
lr_decay_iters = 5000
warmup_iters = 100
learning_rate = 1e-3
min_lr = 1e-4
beta2 = 0.99  # a step has few tokens
weight_decay = 0.1

# Nothing that trades exactness for speed
device = "cuda"
dtype = "float32"
tf32 = False
attention_backend = "manual"
compile = False

eval_interval = 250
log_interval = 100
keep_checkpoints = 1
