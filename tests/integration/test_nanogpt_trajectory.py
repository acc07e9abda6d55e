"""The legacy preset trains as nanoGPT does: losses, gradient norms and rates, step by step.

The reference is written here from the GPT-2 paper and nanoGPT's recipe, in plain PyTorch; it shares
nothing with the code under test but the weights that both begin with and the batches they read.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import configurator
import train
from data.batches import TrainingBatches
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer
from recipe.schedules import learning_rate_at
from tests.measured import assert_close, assert_within
from training.resume import Start

STEPS = 50
TOLERANCE = 1e-4

# The reference


class ReferenceBlock(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width, bias=bias)
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.attn_proj = nn.Linear(width, width, bias=bias)
        self.ln_2 = nn.LayerNorm(width, bias=bias)
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.mlp_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.reshape(B, T, self.heads, C // self.heads).permute(0, 2, 1, 3)
            for part in torch.chunk(self.c_attn(self.ln_1(x)), 3, dim=2)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(C // self.heads)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = torch.softmax(scores.masked_fill(future, -math.inf), dim=3)
        attended = torch.einsum("bhqk,bhkd->bqhd", weights, v).reshape(B, T, C)
        x = x + self.attn_proj(attended)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class ReferenceGPT2(nn.Module):
    def __init__(self, layers: int, heads: int, width: int, length: int, vocab: int, bias: bool):
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(length, width)
        self.h = nn.ModuleList(ReferenceBlock(width, heads, bias) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=bias)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1))


def reference_rate(step: int, peak: float, lowest: float, warmup: int, end: int) -> float:
    """Linear warm-up, half a cosine, then the lowest rate."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step > end:
        return lowest
    share = (step - warmup) / (end - warmup)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * share)) / 2


def reference_optimizer(model: nn.Module, decay: float, betas: tuple[float, float]):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas, foreach=False)


# The weights of one in the names of the other

OUTSIDE = {
    "embedding.weight": "wte.weight",
    "positions.table.weight": "wpe.weight",
    "final_norm": "ln_f",
}
IN_A_BLOCK = {
    "mixer_norm": "ln_1",
    "mixer.qkv": "c_attn",
    "mixer.out": "attn_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "c_fc",
    "ffn.down": "mlp_proj",
}


def in_reference_names(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in parameters.items():
        for ours, theirs in {**OUTSIDE, **IN_A_BLOCK}.items():
            name = name.replace(ours, theirs)
        renamed[name.replace("blocks.", "h.")] = value.detach().clone()
    return renamed


# Both


@pytest.fixture
def dataset(tmp_path):
    """Text whose loss falls a good way within the steps."""
    words = ["quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again"]
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(len(words), (6000,), generator=generator).tolist()
    text = " ".join(words[i] for i in order)
    documents = [Document("train", (text,)), Document("val", (text[:2000],))]
    write_dataset(
        documents, ByteTokenizer(), tmp_path / "words", name="words", source="", separate=False
    )
    return tmp_path / "words"


@pytest.mark.parametrize("bias", [pytest.param(False, marks=pytest.mark.slow), True])
def test_fifty_steps(dataset, tmp_path, bias):
    recipe = {
        "max_iters": STEPS,
        "learning_rate": 1e-3,
        "min_lr": 1e-4,
        "warmup_iters": 10,
        "lr_decay_iters": 40,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "grad_clip": 0.5,
        "gradient_accumulation_steps": 2,
        "batch_size": 6,
    }
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 64, "block_size": 32, "bias": bias}
    flags = {**recipe, **sizes, "arch_preset": "legacy", "dataset": dataset, "dtype": "float32"}
    flags |= {"device": "cpu", "compile": False, "out_dir": tmp_path / "out"}
    run = train.set_up(
        Start(configurator.load([f"--{key}={value}" for key, value in flags.items()]))
    )
    training = run.settings.training
    run.network.train()

    reference = ReferenceGPT2(4, 4, 64, 32, run.settings.model.vocab_size, bias)
    weights = in_reference_names(dict(run.network.named_parameters()))
    reference.load_state_dict(weights)
    optimizer = reference_optimizer(reference, decay=0.1, betas=(0.9, 0.99))

    batches = TrainingBatches(run.dataset.train, 32, 6, 2, training.data_seed)
    losses = []
    for step in range(STEPS):
        inputs, targets = batches.batch(step)
        rate = learning_rate_at(step, training)
        train.train_step(run, inputs, targets, rate, statistics=False)
        report = run.guard.read()

        expected_rate = reference_rate(step, peak=1e-3, lowest=1e-4, warmup=10, end=40)
        assert_within(abs(rate / expected_rate - 1), 1e-12, f"the rate of step {step}")
        for group in optimizer.param_groups:
            group["lr"] = expected_rate
        optimizer.zero_grad()
        expected = 0.0
        for x, y in zip(inputs, targets, strict=True):
            loss = reference(x, y) / 2
            loss.backward()
            expected += loss.item()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5).item()
        optimizer.step()

        assert_within(abs(report.loss - expected), TOLERANCE, f"the loss of step {step}")
        assert_within(abs(report.gradients["norm"] / norm - 1), 1e-3, f"the norm of step {step}")
        losses.append(report.loss)

    assert losses[-1] < losses[0] - 2, "too little was learned for a test"
    ours = in_reference_names(dict(run.network.named_parameters()))
    for name, parameter in reference.named_parameters():
        assert_close(ours[name], parameter, 1e-2, name)
