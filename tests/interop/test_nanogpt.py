"""nanoGPT's checkpoints, against a GPT-2 of its layout that is written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interop.nanogpt import load
from model_config import ModelArchitectureConfig

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 65}


class Reference(nn.Module):
    """GPT-2 with nanoGPT's names: (out, in) matrices, exact GELU, one bias key for all."""

    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size, bias):
        super().__init__()
        self.n_head = n_head

        def norm():
            return nn.LayerNorm(n_embd, bias=bias)

        def linear(n_in, n_out):
            return nn.Linear(n_in, n_out, bias=bias)

        def block():
            attn = nn.ModuleDict(
                {"c_attn": linear(n_embd, 3 * n_embd), "c_proj": linear(n_embd, n_embd)}
            )
            mlp = nn.ModuleDict(
                {"c_fc": linear(n_embd, 4 * n_embd), "c_proj": linear(4 * n_embd, n_embd)}
            )
            return nn.ModuleDict({"ln_1": norm(), "attn": attn, "ln_2": norm(), "mlp": mlp})

        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList(block() for _ in range(n_layer)),
                "ln_f": norm(),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        body, (B, T) = self.transformer, idx.shape
        x = body.wte(idx) + body.wpe.weight[:T]
        for block in body.h:
            heads = block.attn.c_attn(block.ln_1(x)).view(B, T, 3, self.n_head, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)
            x = x + block.attn.c_proj(mixed)
            x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x))))
        return self.lm_head(body.ln_f(x))


def checkpoint(path, prefix="", bias=False, **changes):
    """A file as nanoGPT saves it, and the model in it."""
    torch.manual_seed(0)
    model = Reference(**SIZES, bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    content = {
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": {**SIZES, "bias": bias, "dropout": 0.2},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char"},
    }
    torch.save({**content, **changes}, path)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@torch.no_grad()
def test_logits(tmp_path, bias, prefix):
    theirs = checkpoint(tmp_path / "ckpt.pt", prefix, bias)
    ours = load(tmp_path / "ckpt.pt")
    idx = torch.randint(65, (2, 24))
    assert torch.allclose(ours(idx), theirs(idx), atol=1e-5)
    assert (ours.config.vocab_size, ours.config.block_size) == (65, 24)
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters())
    assert not ours.training


def test_the_architecture_is_legacy(tmp_path):
    checkpoint(tmp_path / "ckpt.pt")
    config = load(tmp_path / "ckpt.pt", dropout=0.1).config
    legacy = {**SIZES, "bias": False, "dropout": 0.1}
    assert config == ModelArchitectureConfig.from_preset("legacy", **legacy)
    assert (config.bias, config.normalization) == (False, "layernorm_nobias")


def test_transposed_matrices_are_refused(tmp_path):
    theirs = checkpoint(tmp_path / "ckpt.pt")
    state = {name: x.mT if ".c_" in name else x for name, x in theirs.state_dict().items()}
    checkpoint(tmp_path / "ckpt.pt", model=state)
    with pytest.raises(
        ValueError, match=r"c_attn.weight has shape \(32, 96\), the architecture needs"
    ):
        load(tmp_path / "ckpt.pt")


def test_missing_weights_are_named(tmp_path):
    theirs = checkpoint(tmp_path / "ckpt.pt")
    state = {name: x for name, x in theirs.state_dict().items() if "wpe" not in name}
    checkpoint(tmp_path / "ckpt.pt", model=state)
    with pytest.raises(ValueError, match=r"transformer\.wpe\.weight is missing"):
        load(tmp_path / "ckpt.pt")


class Evil:
    def __reduce__(self):
        return (print, ("run!",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    checkpoint(tmp_path / "ckpt.pt", config=Evil())
    with pytest.raises(ValueError, match="is not a file of tensors and plain values"):
        load(tmp_path / "ckpt.pt")
    assert "run!" not in capsys.readouterr().out


def test_files_that_are_none_of_nanogpts(tmp_path):
    with pytest.raises(ValueError, match=r"ckpt\.pt cannot be read: No such file"):
        load(tmp_path / "ckpt.pt")
    (tmp_path / "ckpt.pt").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not a file of tensors and plain values"):
        load(tmp_path / "ckpt.pt")
    torch.save([1, 2], tmp_path / "ckpt.pt")
    with pytest.raises(
        ValueError, match="is not a nanoGPT checkpoint: it has no model, model_args"
    ):
        load(tmp_path / "ckpt.pt")
    checkpoint(tmp_path / "ckpt.pt", model_args={"n_layer": 2})
    with pytest.raises(ValueError, match=r"has no model_args\['n_head'\]"):
        load(tmp_path / "ckpt.pt")
