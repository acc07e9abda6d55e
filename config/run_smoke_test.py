"""Learn one sequence of 256 tokens by heart; `scripts/smoke_test.py` brings the data.

Sizes are the model's own here, so that it fits any machine; an architecture may be put after it.
"""

n_layer = 2
n_head = 4
n_embd = 128
block_size = 256

batch_size = 1  # of the only sequence that there is
max_iters = 100
learning_rate = 3e-3
warmup_iters = 10
beta2 = 0.99
weight_decay = 0.0
compile = False  # compiling takes longer than the run

eval_interval = 100
log_interval = 10
checkpoint_minutes = 0.0
