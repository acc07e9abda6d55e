"""A model of GPT-2's size (124M) on 10 billion tokens of FineWeb: llm.c's recipe, any architecture.

    torchrun --nproc_per_node=8 train.py config/arch_gpt2.py config/run_fineweb_124m.py

Tokens: 524,288 per step, 10.0B in 19,073 steps.
Schedule: warm-up over 700 steps, then a cosine from 6e-4 to 0.
Loss: about 3.28 nats per token is expected for GPT-2 (modded-nanogpt's README, for llm.c's
trainer, on other validation tokens of FineWeb). Not yet run here.
Time and cost: not yet run. arch_gpt2 has 854,654,976 FLOPs per token; at 40 % of the 989 TFLOP/s of
8 H100, which is the speed of llm.c's PyTorch trainer (modded-nanogpt's README), that makes
45.0 minutes, or $21 at $28 an hour (Lambda's price for eight, llm.c's discussion 677).
"""

dataset = "fineweb"

# 124M parameters with arch_gpt2
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
sequence_length = 1024

batch_size = 16
gradient_accumulation_steps = 32

max_iters = 19073  # one epoch
warmup_iters = 700
learning_rate = 6e-4
min_lr = 0.0

eval_interval = 250
eval_tokens = 0  # the whole validation split
