"""Overfit a single sequence of 256 tokens; `scripts/smoke_test.py` provides the data.

The model is small enough for any machine; an architecture file after this one may change it.
"""

n_layer = 2
n_head = 4
n_embd = 128
block_size = 256

batch_size = 1  # the data is a single sequence
max_iters = 100
learning_rate = 3e-3
warmup_iters = 10
beta2 = 0.99
weight_decay = 0.0
compile = False  # compiling takes longer than the run

eval_interval = 100
log_interval = 10
checkpoint_minutes = 0.0
