"""A small model of Tiny Shakespeare: readable text from a laptop's CPU in about two minutes.

    python train.py config/arch_llama.py config/run_laptop.py
    python sample.py --run=latest --max_new_tokens=500

Tokens: 2,048 a step, 2.0M in 1,000 steps.
Schedule: warm-up over 100 steps, then a cosine from 3e-3 to 3e-4.
"""

dataset = "shakespeare_char"

# 0.8M parameters
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128
sequence_length = 128

batch_size = 16
gradient_accumulation_steps = 1

max_iters = 1000
warmup_iters = 100
learning_rate = 3e-3
beta2 = 0.99  # a step has few tokens

eval_interval = 250
eval_tokens = 0  # the whole validation split
log_interval = 50
keep_checkpoints = 1
