"""The training recipe of every arm of docs/study-cpu.md: a laptop can train dozens of them.

`python scripts/study_cpu.py` runs the study. This file sets the sizes (0.8M parameters); the
architecture is set by the other config files.
"""

dataset = "shakespeare_char"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64
sequence_length = 64

batch_size = 16
max_iters = 600  # 0.6M tokens
warmup_iters = 100  # with 20, GPT-2 breaks down at 1.1e-2, just above its best learning rate
beta2 = 0.99  # a step has few tokens

# Exact, and the same on every machine
device = "cpu"
dtype = "float32"
compile = False

eval_interval = 100
eval_tokens = 0  # the whole validation set
log_interval = 50
checkpoint_minutes = 0.0
keep_checkpoints = 1
