"""A short run for `scripts/reproducibility_audit.py`, with all approximations disabled.

Dropout is on, so that the random generators are audited too.
"""

dataset = "shakespeare_char"
eval_tokens = 8192

n_layer = 2
n_head = 4
n_embd = 64
block_size = 64
sequence_length = 64
dropout = 0.1

batch_size = 8
max_iters = 20
eval_interval = 20
log_interval = 10
checkpoint_minutes = 0.0

dtype = "float32"
tf32 = False
attention_backend = "manual"
compile = False
