"""Character-level Tiny Shakespeare on a CPU: the loss of nanoGPT's CPU recipe, many times faster.

    python train.py config/run_shakespeare_fast_cpu.py

It also selects fast components; docs/fast-cpu.md describes the gain from each.

Parameters: 411,008.
Tokens: 2,048 per step, 147,456 in 72 steps.
Loss: nanoGPT's recipe ends at a validation loss of 1.898. This one, measured in nats per character
of the whole validation split: 1.8624, 1.8842 and 1.8682 with seeds 1337 to 1339.
Time: measured on 2 cores of an AMD EPYC with AVX512-BF16 in bfloat16 (torch 2.13.0), including
startup and validation: 6.1 s, nanoGPT 76.3 s (medians of three alternating runs).
"""

dataset = "shakespeare_char"
eval_tokens = 0  # the whole validation split
batch_size = 32
gradient_accumulation_steps = 1

# 0.4M parameters
n_layer = 2
n_head = 2
n_embd = 128
block_size = 64
sequence_length = 64

# Components: the first layer sees the last few characters, the second layer all of them
mixer = "short_conv+attention"
short_conv_kernel = 5
position_encoding = "rope"
qk_norm = True
normalization = "rmsnorm"
ffn_type = "swiglu"
activation = "silu"
bias = False
weight_tying = False
init_std = 0.05

max_iters = 72
learning_rate = 0.03
lr_schedule = "linear"
min_lr = 0.0

optimizer = "muon"
muon_rate_scale = 0.5  # embedding and LM head learn at learning_rate, hidden matrices at half of it
muon_momentum = 0.85  # averages over few steps, because the run is short
beta1 = 0.7

device = "cpu"
compile = False  # takes longer than the run

eval_interval = 0  # only at the end
log_interval = 12
keep_checkpoints = 1
