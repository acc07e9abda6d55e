"""Fine-tune a trained model with LoRA, on the text of any dataset that has its tokenizer.

    python train.py config/finetune_lora.py --init_from=FOLDER --dataset=NAME

FOLDER is a model folder of Hugging Face transformers (docs/finetuning.md), or a run directory.
Only the adapters are trained and saved. --adapter=rslora and --adapter=dora have the same options.
"""

adapter = "lora"
adapter_rank = 16
adapter_alpha = 32
adapter_pattern = "*"  # every Linear layer of the blocks; "q,v" as in the paper
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
