"""The comparison table: which runs it finds, what it says of them, and what it skips."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compare_architectures
from compare_architectures import RECIPE_KEYS, differences, load_run, main
from training_logger import LINE_WIDTH, TrainingLogger

ROOT = Path(compare_architectures.__file__).parent
ARCHITECTURE = {
    "name": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm",
    "parameters": 162_220_800,
    "flops_per_token": 854_654_976,
    "flops_per_token_causal": 798_087_168,
    "attention_ffn_ratio": 0.45,
}
DATA = {"dataset": "tiny", "fingerprint": "f00d", "train_tokens": 900, "val_tokens": 100}
CONFIG = {"learning_rate": 1e-3, "seed": 1, "n_layer": 12, "run_name": "auto"}


def log(logger, iter: int) -> None:
    logger.log_step(
        iter=iter,
        loss=10 / iter,
        lr=1e-3,
        time_ms=100.0,
        tokens_seen=iter * 1000,
        tokens_per_second=500.0 + iter,
        memory={"peak": 3_210_000_000},
        gradients={"norm": 1.0, "mean": 0.0, "std": 1.0},
        bad_steps=0,
    )
    if iter % 20 == 0:
        logger.log_eval(
            iter=iter,
            val_loss=100 / iter,
            val_bits_per_byte=150 / iter,
            tokens_seen=iter * 1000,
            seconds=iter / 10,
        )


def make_run(folder, *, start="2025-01-01", last=40, crash=False, **changes) -> Path:
    """A run of `last` steps in `folder`, logged each 10 steps and evaluated each 20.

    With `crash` it is killed after the last: what it left on the disk is all there is.
    """
    settings = {
        "config": CONFIG,
        "architecture": ARCHITECTURE,
        "environment": {"device": "a CPU"},
        "data": DATA,
        "peak_flops": 1e12,
        "max_iters": 100,
    }
    path = folder / "run.json"
    with TrainingLogger(folder, folder.name, **(settings | changes)) as logger:
        for iter in range(10, last + 1, 10):
            log(logger, iter)
        left_by_a_kill = path.read_text()
    document = json.loads(left_by_a_kill if crash else path.read_text())
    path.write_text(json.dumps(document | {"start_time": start}))
    return folder


def rewrite(folder, **changes) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def compare(capsys):
    """Runs the command; returns its exit code, output and error lines."""

    def run(*argv) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def shown_runs(out: str) -> list[str]:
    return [line.split(":")[0] for line in out.splitlines() if ARCHITECTURE["name"] in line]


# --- The table ---


def test_the_table_tells_what_a_run_reached_and_cost(tmp_path, compare):
    code, out, err = compare(make_run(tmp_path / "llama"))
    assert (code, err) == (0, "")
    header, _, title, numbers = out.splitlines()[1:5]
    assert title == "llama: 12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm (completed)"
    cells = [cell.strip() for cell in numbers.split("  ") if cell]
    # Medians over the intervals but the first: 530 tokens/s x 854.654976 MFLOPs of 1 TFLOP/s.
    assert cells[:-1] == [
        *("162.2M", "854.7 MFLOPs", "2.5000", "3.7500", "2.5000", "530", "45.3%", "3.2 GB")
    ]
    assert re.split(r"\s{2,}", header.strip()) == [
        *("params", "FLOPs/token", "val loss", "bits/byte", "best loss", "tokens/s", "MFU"),
        *("memory", "seconds"),
    ]
    assert len(header) == len(numbers)


def test_the_table_fits_however_long_the_names_are(tmp_path, compare):
    long_name = ARCHITECTURE | {"name": ARCHITECTURE["name"] + "-4KV-QKNorm-SWA256" * 4}
    huge = long_name | {"parameters": 99_999_999_999, "flops_per_token": 1e15}
    runs = [
        make_run(tmp_path / ("long-run-name-" * 4), architecture=long_name),
        make_run(tmp_path / "b", architecture=huge, data=DATA | {"fingerprint": "0" * 64}),
    ]
    _, out, _ = compare(*runs)
    assert max(map(len, out.splitlines())) <= LINE_WIDTH
    assert long_name["name"] in out.replace("\n    ", "")  # whole: no two names look the same


def test_what_a_run_does_not_know_is_a_dash(tmp_path, compare):
    code, out, _ = compare(make_run(tmp_path / "young", last=0, peak_flops=None))
    assert code == 0
    assert out.splitlines()[4].split()[3:-1] == ["-"] * 6


# --- Which runs ---


def test_the_newest_runs_are_found_anywhere_under_out_dir(tmp_path, compare):
    make_run(tmp_path / "old", start="2025-01-01T00:00:00")
    make_run(tmp_path / "deep" / "er" / "newest", start="2025-01-03T00:00:00")
    make_run(tmp_path / "deep" / "newer", start="2025-01-02T00:00:00")
    assert shown_runs(compare("--latest", 2, "--out_dir", tmp_path)[1]) == ["newest", "newer"]
    assert shown_runs(compare("--latest=9", "--out_dir", tmp_path)[1]) == ["newest", "newer", "old"]


def test_without_arguments_the_three_newest_runs_of_out_are_shown(tmp_path, compare, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for day in range(1, 5):
        make_run(tmp_path / "out" / f"day{day}", start=f"2025-01-0{day}")
    assert shown_runs(compare()[1]) == ["day4", "day3", "day2"]


def test_named_runs_stay_in_their_order(tmp_path, compare):
    first = make_run(tmp_path / "b", start="2025-01-01")
    second = make_run(tmp_path / "a", start="2025-01-02")
    assert shown_runs(compare(first, second / "run.json")[1]) == ["b", "a"]


def test_no_run_is_said_plainly(tmp_path, compare):
    code, out, err = compare("--out_dir", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err == f"No run found under {tmp_path / 'nowhere'}/. Train one first: python train.py\n"


def test_a_named_run_that_is_not_there_is_skipped_with_its_name(tmp_path, compare):
    code, out, err = compare(tmp_path / "lost")
    assert (code, out) == (1, "")
    assert f"skipped {tmp_path / 'lost'}: no such file; name the folder of a run" in err
    assert "No run found among those named." in err
    run = make_run(tmp_path / "there")
    code, out, err = compare(tmp_path / "lost", run)
    assert (code, shown_runs(out)) == (0, ["there"])
    assert "lost" in err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"schema_version": 1, "run_na', "damaged (Unterminated string"),
        ("[1, 2]", "not the log of a run (it holds no JSON object)"),
        ('{"name": "a web page"}', "schema_version None, not 1"),
        ('{"schema_version": 99}', "schema_version 99, not 1"),
        ('{"schema_version": 1, "run_name": 3}', "missing or wrong: run_name, status, start_time"),
        ("\x00\x00", "damaged ("),
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_skipped(tmp_path, compare, text, why):
    make_run(tmp_path / "good")
    bad = tmp_path / "bad" / "run.json"
    bad.parent.mkdir()
    bad.write_text(text)
    code, out, err = compare("--latest=5", "--out_dir", tmp_path)
    assert (code, shown_runs(out)) == (0, ["good"])
    assert err.startswith(f"skipped {bad}: ")
    assert why in err


def test_an_architecture_without_its_numbers_is_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    rewrite(folder, architecture={"name": "x", "parameters": 1})
    with pytest.raises(ValueError, match=r"missing or wrong: flops_per_token"):
        load_run(folder)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--latest=0"], "--latest=0 must be at least 1"),
        (["out/a", "--latest=2"], "not both"),
        (["--latest=two"], "invalid int value"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# --- Runs without an end ---


def test_a_crashed_run_counts_as_far_as_its_metrics_got(tmp_path, compare):
    folder = make_run(tmp_path / "crashed", last=30, crash=True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "iter": 4')
    stale = json.loads((folder / "run.json").read_text())
    assert [record["iter"] for record in stale["training_iterations"]] == [10, 20]
    run = load_run(folder)
    assert [record["iter"] for record in run.training_iterations] == [10, 20, 30]
    assert run.summary["total_tokens"] == 30_000
    assert run.summary["total_flops"] == 30_000 * ARCHITECTURE["flops_per_token"]
    assert run.summary["final_val_loss"] == 5.0
    _, out, err = compare(folder)
    assert "crashed: 12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm (running)" in out
    assert err == ""


def test_a_crashed_run_without_metrics_shows_what_run_json_has(tmp_path):
    folder = make_run(tmp_path / "crashed", last=30, crash=True)
    (folder / "metrics.jsonl").unlink()
    assert load_run(folder).summary["total_tokens"] == 20_000


def test_damaged_metrics_of_a_crashed_run_are_named(tmp_path, compare):
    folder = make_run(tmp_path / "crashed", crash=True)
    path = folder / "metrics.jsonl"
    path.write_text("{]\n" + path.read_text())
    code, _, err = compare(folder)
    assert code == 1
    assert "metrics.jsonl: line 1 of 7 is damaged" in err


# --- Unlike things ---


def test_like_runs_have_no_notes(tmp_path, compare):
    other = ARCHITECTURE | {"name": "12L-12H-768D-AbsPos-LN-GELU-PreNorm"}
    a = make_run(tmp_path / "a")
    b = make_run(
        tmp_path / "b", architecture=other, config=CONFIG | {"n_layer": 6, "run_name": "b"}
    )
    _, out, _ = compare(a, b)
    assert "not alike" not in out


def test_what_differs_is_named_with_the_runs(tmp_path, compare):
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", config=CONFIG | {"learning_rate": 3e-4})
    c = make_run(
        tmp_path / "c",
        last=20,
        data=DATA | {"fingerprint": "beef", "val_tokens": 50},
        environment={"device": "a GPU"},
    )
    _, out, _ = compare(a, b, c)
    notes = out.split("These runs are not alike:\n")[1].splitlines()
    assert notes == [
        "  data fingerprint: f00d (a, b); beef (c)",
        "  validation tokens: 100 (a, b); 50 (c)",
        "  training tokens seen: 40000 (a, b); 20000 (c)",
        "  device: a CPU (a, b); a GPU (c)",
        "  learning_rate: 0.001 (a, c); 0.0003 (b)",
    ]


def test_a_key_that_a_run_lacks_is_a_difference(tmp_path):
    a = load_run(make_run(tmp_path / "a"))
    b = load_run(make_run(tmp_path / "b", config=CONFIG | {"grad_clip": 1.0}))
    assert differences([a, b]) == ["grad_clip: None (a); 1.0 (b)"]


def test_the_recipe_is_all_that_shapes_a_result():
    shaping = {"dataset", "sequence_length", "batch_size", "max_iters", "seed", "data_seed"}
    assert shaping | {"learning_rate", "dtype", "eval_tokens"} <= set(RECIPE_KEYS)
    assert not {"arch_preset", "run_name", "out_dir", "log_interval"} & set(RECIPE_KEYS)


# --- The script ---


def test_the_script_runs_without_torch(tmp_path):
    make_run(tmp_path / "run")
    code = (
        "import sys, compare_architectures\n"
        f"status = compare_architectures.main(['--out_dir', {str(tmp_path)!r}])\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run: 12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm (completed)" in done.stdout
