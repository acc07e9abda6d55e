"""A small model of Tiny Shakespeare, trained on a CPU: its samples have the form of a play.

    python train.py config/arch_llama.py config/run_laptop.py
    python sample.py --run=latest --max_new_tokens=500

For a model without attention, such as arch_mamba2_tiny, add --n_head=default.

Tokens: 2,048 per step, 2.0M in 1,000 steps.
Schedule: warm-up over 100 steps, then a cosine from 3e-3 to 3e-4.
Loss: measured with seed 1337, nats per character of the whole validation split: 1.66 as arch_llama,
1.82 as arch_gpt2.
Time: measured on one core of an AMD EPYC in bfloat16 (torch 2.13.0), start and validation included:
2 min 20 s of CPU time with arch_llama, 2 min 7 s with arch_gpt2. The machine was shared, so the
wall time was longer: 3 min 35 s and 4 min 46 s. On two cores a step of arch_llama took 83 ms (mean
of 100 steps, on the same machine when it was less busy).
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
