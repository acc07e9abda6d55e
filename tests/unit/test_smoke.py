"""The check of a user's own parts when a run starts."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import torch

from configurator import load
from errors import UserError
from training import smoke
from training.preflight import refuse_machine
from training.smoke import check_own_parts

CPU = torch.device("cpu")

NORM = '''
import torch
from torch import nn
from components.norms import NORMS

@NORMS.register("mine", label="Mine")
class Mine(nn.Module):
    """A norm."""

    def __init__(self, dim, config):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        {forward}
'''


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Check a norm whose forward is as given, as a run does when it starts."""
    monkeypatch.chdir(tmp_path)

    def check_norm(forward: str, *flags: str) -> None:
        (tmp_path / "parts.py").write_text(NORM.format(forward=forward))
        settings = load(["--plugins=parts.py", "--normalization=mine", *flags])
        refuse_machine(settings, CPU, torch.float32)

    return check_norm


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--arch_preset=llama", "--n_head=12", "--n_kv_head=4", "--qk_norm=True"),
        ("--sliding_window=100*2+none", "--n_layer=7", "--ffn_hidden=999"),
        ("--n_embd=8", "--n_head=1", "--block_size=4", "--head_dim=6"),
        ("--n_head=4", "--n_embd=32", "--n_kv_head=1+2", "--ffn_hidden=40+50"),
        (
            "--ffn_type=standard+glu*",
            "--activation=gelu+relu+silu*",
            "--position_encoding=rope+none",
        ),
    ],
)
def test_a_sound_part_passes(check, flags) -> None:
    before = torch.get_rng_state()
    check("return self.scale * x", *flags)
    assert torch.equal(before, torch.get_rng_state())


def test_a_part_may_demand_a_width_of_its_own(check) -> None:
    check("assert x.shape[-1] == 36; return self.scale * x", "--n_embd=36", "--n_head=3")


def test_a_part_need_not_use_its_parameters_in_every_layer(check) -> None:
    count = "Mine.calls = getattr(Mine, 'calls', 0) + 1"
    check(f"{count}; return self.scale * x if Mine.calls % 2 else x")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            "return self.scale[:, None] * x[..., None, :]",
            r"must keep the shape of its input, \(2, 8, 768\); it returned \(2, 8, 768, 768\)",
        ),
        ("return x, self.scale", r"must return a tensor with the shape .*\(2, 8, 768\), not tuple"),
        ("return self.scale.detach() * x", r"none of its 1 parameters \(scale\) gets a gradient"),
        ("return self.scale * x / 0", "the loss of a new model must be finite, not nan"),
        (
            "return x + (self.scale - 1).abs().sqrt()",
            "the gradient of its parameter scale is not finite",
        ),
    ],
)
def test_what_is_wrong_with_a_part_is_said(check, forward, message) -> None:
    with pytest.raises(UserError, match=message) as refused:
        check(forward)
    assert "normalization='mine' (Mine in " in str(refused.value)


def test_what_a_part_raises_keeps_its_traceback(check) -> None:
    with pytest.raises(IndexError) as raised:
        check("return x[:, 99] * self.scale")
    assert traceback.extract_tb(raised.value.__traceback__)[-1].line.startswith("return x[:, 99]")
    assert "normalization='mine' (Mine in " in raised.value.__notes__[0]


def test_so_does_a_part_that_exits(check) -> None:
    with pytest.raises(SystemExit) as raised:
        check("raise SystemExit(0)")
    assert traceback.extract_tb(raised.value.__traceback__)[-1].line == "raise SystemExit(0)"
    assert "normalization='mine' (Mine in " in raised.value.__notes__[0]


def test_what_depends_on_the_data_passes(check) -> None:
    check("return self.scale * x * len(x[x > 0])")


def test_parts_of_the_project_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "GPT", None)
    check_own_parts(load([]).model, CPU, torch.float32)


OPTIMIZER = '''
import torch
from recipe.optimizers import OPTIMIZERS, UpdateRule

@OPTIMIZERS.register("mine", label="Mine")
class Mine(UpdateRule):
    """Gradient descent."""

    def __init__(self, model, config):
        super().__init__([p for p in model.parameters() if {taken}], {{"lr": config.learning_rate}})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                {update}
'''


@pytest.fixture
def check_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Check an optimizer as a run does when it starts."""
    monkeypatch.chdir(tmp_path)

    def check(update: str, taken: str = "True") -> None:
        (tmp_path / "parts.py").write_text(OPTIMIZER.format(update=update, taken=taken))
        settings = load(["--plugins=parts.py", "--optimizer=mine", "--n_layer=1", "--head_dim=8"])
        refuse_machine(settings, CPU, torch.float32)

    return check


def test_a_sound_optimizer_passes(check_optimizer) -> None:
    before = torch.get_rng_state()
    check_optimizer("p.sub_(p.grad, alpha=group['lr'])")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("update", "taken", "message"),
    [
        (
            "p.zero_().log_()",
            "True",
            r"'mine' \(Mine in .*parts.py\): a step makes embedding.weight",
        ),
        ("self.state[p]['step'] = self.steps", "True", "stores 'step' of a parameter as int"),
        ("self.state[p][f's{self.steps}'] = p.clone()", "True", "create all state in the"),
        ("p.sub_(p.grad)", "p.ndim > 1", r"='mine' updates \d+ .*omits .*norm"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(
    check_optimizer, update: str, taken: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_optimizer(update, taken)


def test_an_optimizer_that_falsely_says_that_it_takes_found_inf_is_refused(
    check_optimizer,
) -> None:
    with pytest.raises(
        UserError, match="a skipped step, which must change nothing, makes embedding"
    ):
        check_optimizer("p.sub_(p.grad)", "[setattr(self, '_step_supports_amp_scaling', True)]")


def test_what_an_optimizer_raises_passes(check_optimizer) -> None:
    with pytest.raises(ZeroDivisionError):
        check_optimizer("1 / 0")
