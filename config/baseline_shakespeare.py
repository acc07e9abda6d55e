"""The baseline for a GPU: nanoGPT's character-level Tiny Shakespeare, without approximations.

`python scripts/baseline.py` trains it and checks its best validation loss: at most 1.5435 nats per
character on the whole validation split, which is 5 % above the 1.47 in nanoGPT's README.
"""

arch_preset = "legacy"

# Data: validation on every character of Tiny Shakespeare's last tenth
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

# Nothing that trades accuracy for speed
device = "cuda"
dtype = "float32"
tf32 = False
attention_backend = "manual"
compile = False

eval_interval = 250
log_interval = 100
keep_checkpoints = 1
