"""Character-level Tiny Shakespeare on one GPU: nanoGPT's recipe, for any architecture.

    python train.py config/arch_llama.py config/run_shakespeare.py

Tokens: 16,384 per step, 81.9M in 5,000 steps.
Schedule: warm-up over 100 steps, then a cosine from 1e-3 to 1e-4.
Loss: a best loss of about 1.47 nats per character is expected for GPT-2; nanoGPT's README reports
1.4697 without biases. Not yet run here.
Time and cost: not yet run. arch_gpt2 has 70,928,640 FLOPs per token; at 10 % of the 312 TFLOP/s of
1 A100, which is the speed of nanoGPT (its README says about 3 minutes), that makes 3.1 minutes, or
$0.09 at $1.75 an hour (an eighth of Lambda's $14 for eight, llm.c's discussion 481).
"""

dataset = "shakespeare_char"

# 10.8M parameters with arch_gpt2
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
sequence_length = 256
dropout = 0.2  # 82 epochs

batch_size = 64
gradient_accumulation_steps = 1

max_iters = 5000
warmup_iters = 100
learning_rate = 1e-3
beta2 = 0.99  # a step has few tokens

eval_interval = 250
eval_tokens = 0  # the whole validation split
