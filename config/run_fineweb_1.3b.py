"""1.3 billion parameters on 26 billion tokens of FineWeb, for any architecture.

    torchrun --nproc_per_node=8 train.py config/arch_llama.py config/run_fineweb_1.3b.py

Tokens: 1,048,576 per step, 26.2B in 25,000 steps: 20 for each parameter, as Hoffmann et al. (2022,
arXiv 2203.15556) recommend.
Schedule: warm-up over 500 steps, then a cosine from 4e-4 to 4e-5.
Loss: about 2.73 nats per token is expected for GPT-2, by extrapolation: Hoffmann's third fit,
406.4 / parameters^0.34 + 410.7 / tokens^0.28, is 0.55 lower than for run_fineweb_124m. Not yet
run here.
Time and cost: not yet run. arch_gpt2 has 9,073,852,416 FLOPs per token; at 40 % of the 989 TFLOP/s
of 8 H100, as for run_fineweb_124m, that makes 20.9 hours, or $585 at $28 an hour (Lambda's price
for eight, llm.c's discussion 677). llm.c reports 24 hours and $672 for GPT-2's 1.56B.
"""

dataset = "fineweb_100b"

# 1.3B parameters with arch_gpt2
n_layer = 24
n_head = 16
n_embd = 2048
block_size = 2048
sequence_length = 2048

batch_size = 4
gradient_accumulation_steps = 128

max_iters = 25000
warmup_iters = 500
learning_rate = 4e-4  # between the 2e-4 of GPT-3 XL and the 6e-4 of llm.c

eval_interval = 500
eval_tokens = 10_485_760
