"""One model under several names in a real sweep: no name may be better or worse than another."""

from __future__ import annotations

from pathlib import Path

import pytest

import compare_architectures
import sweep
from experiment.selection import select
from inference.verdicts import EQUAL, INCONCLUSIVE
from tests.integration.runs import log_of

DATA = Path(__file__).resolve().parents[2] / "data" / "shakespeare_char"

TWINS = '''
from components.ffns import FFNS, StandardFFN


@FFNS.register("same", label="Same")
class Same(StandardFFN):
    """The standard FFN under another name."""


@FFNS.register("redrawn", label="Redrawn")
class Redrawn(StandardFFN):
    """The standard FFN with other initial numbers of the same distribution."""

    stream_name = "redrawn"
'''

RUN = (
    *(f"--dataset={DATA}", "--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=64"),
    *("--batch_size=8", "--max_iters=150", "--warmup_iters=15", "--learning_rate=3e-3"),
    *("--eval_interval=0", "--eval_tokens=20000", "--log_interval=50", "--device=cpu"),
)


@pytest.mark.slow  # 15 runs in processes of their own, 1 to 3 minutes
@pytest.mark.skipif(not (DATA / "meta.json").exists(), reason=f"{DATA} is not prepared")
def test_no_name_is_better_or_worse(tmp_path, capsys):
    """One name for the very same numbers, and one whose initial numbers are drawn anew."""
    plugin = tmp_path / "twins.py"
    plugin.write_text(TWINS)
    command = ["config/arch_gpt2.py", f"--plugins={plugin}", "--vary", "ffn_type=same,redrawn"]
    command += [*RUN, f"--out_dir={tmp_path / 'out'}", "--seeds=5", "--name=null"]
    assert sweep.main(command) == 0
    folder = tmp_path / "out" / "sweeps" / "null"
    base, same, redrawn = select([str(folder)], None, tmp_path).findings().rows

    assert same.group.losses == base.group.losses  # bit for bit
    assert same.verdict.word == INCONCLUSIVE
    assert same.verdict.interval is None
    reason = "every seed has the loss of the baseline, as the same model would"
    assert same.verdict.reason == reason

    assert all(redrawn.group.losses[seed] != loss for seed, loss in base.group.losses.items())
    assert redrawn.verdict.word in (EQUAL, INCONCLUSIVE)
    low, high = redrawn.verdict.interval
    assert low <= 0 <= high
    capsys.readouterr()
    assert compare_architectures.main([str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"inconclusive: {reason}" in said
    assert "better" not in said.replace("as the better", "")
    assert set(log_of(folder / "runs" / "baseline-s1337")["plugins"]) == {"twins.py"}


@pytest.mark.skipif(not (DATA / "meta.json").exists(), reason=f"{DATA} is not prepared")
@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ("", "two and one have the same config; drop one"),
        ("data_seed = 99\n", "the baseline has 1337, so they would not be comparable"),
        ("seed = 99\n", "the baseline has 1337, so they would not be comparable"),
    ],
)
def test_a_sweep_refuses_what_is_no_other_arm(tmp_path, second, problem):
    for name, text in (("one", ""), ("two", second)):
        (tmp_path / f"{name}.py").write_text(f"arch_preset = 'gpt2'\n{text}")
    arms = ",".join(str(tmp_path / f"{name}.py") for name in ("one", "two"))
    command = ["--arms", arms, *RUN, f"--out_dir={tmp_path}", "--dry_run"]
    with pytest.raises(sweep.UserError, match=problem):
        sweep.main(command)
