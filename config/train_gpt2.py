"""GPT-2 (124M) on OpenWebText with nanoGPT's flat keys: about 0.5M tokens per step, 300B in total.

Takes days on eight A100s; not suitable for a laptop.
"""

dataset = "openwebtext"
vocab_size = 50304  # GPT-2's 50257, padded to a multiple of 64 for speed

# 12 sequences x 1024 tokens x 40 micro-batches = 491,520 tokens per step
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8

max_iters = 600000
lr_decay_iters = 600000
learning_rate = 6e-4
min_lr = 6e-5
warmup_iters = 2000
weight_decay = 1e-1

eval_interval = 1000
eval_tokens = 0  # the whole validation split
log_interval = 10
