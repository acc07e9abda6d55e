"""Fine-tune a trained model with QLoRA: LoRA on a base whose Linear layers are stored in 4 bits.

    python train.py config/finetune_qlora.py --init_from=FOLDER --dataset=NAME

Like finetune_lora.py, but with the base in NF4 and double quantization, as in the paper (Dettmers
et al. 2023, arXiv 2305.14314). Needs bitsandbytes: pip install bitsandbytes.
"""

adapter = "lora"
quantize_base = "nf4-dq"  # "nf4" keeps the scales in float32
adapter_rank = 16
adapter_alpha = 32
adapter_pattern = "*"  # every Linear layer of the blocks, as in the paper
adapter_dropout = 0.05

batch_size = 8
max_iters = 500
learning_rate = 2e-4
lr_schedule = "linear"
warmup_iters = 25
min_lr = 0.0
beta2 = 0.999
weight_decay = 0.0

eval_interval = 100
keep_checkpoints = 1
