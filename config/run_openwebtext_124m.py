"""A model of GPT-2's size (124M) on OpenWebText: nanoGPT's recipe, for any architecture.

    torchrun --nproc_per_node=8 train.py config/arch_gpt2.py config/run_openwebtext_124m.py

Tokens: 491,520 per step, 294.9B in 600,000 steps.
Schedule: warm-up over 2,000 steps, then a cosine from 6e-4 to 6e-5.
Loss: about 2.85 nats per token is expected for GPT-2 (nanoGPT's README, without biases).
Not yet run here.
Time and cost: not yet run. arch_gpt2 has 854,654,976 FLOPs per token; at 40 % of the 989 TFLOP/s of
8 H100, which is the speed of llm.c's PyTorch trainer (modded-nanogpt's README: 10B tokens of this
model in 45 minutes), that makes 22.1 hours, or $619 at $28 an hour (Lambda's price for eight,
llm.c's discussion 677). nanoGPT took about 4 days on 8 A100.
"""

dataset = "openwebtext"

# 124M parameters with arch_gpt2
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
sequence_length = 1024

batch_size = 12
gradient_accumulation_steps = 40

max_iters = 600000  # 33 epochs
warmup_iters = 2000
learning_rate = 6e-4

eval_interval = 1000
eval_tokens = 0  # the whole validation split
