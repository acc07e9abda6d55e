"""The clean control: its recipes, its bar, and its table."""

from __future__ import annotations

import argparse
import csv
import dataclasses

import pytest

import configurator
from data.dataset_files import META_FILE
from data.dataset_lookup import DATA_FOLDER
from scripts import baseline
from scripts.baseline import (
    CPU,
    GPU,
    LARGEST_SPREAD,
    METRICS,
    Result,
    append,
    main,
    misses,
    result_of,
    seeds,
    spread,
)
from scripts.runs import FAILED, PASSED

COLUMNS = [field.name for field in dataclasses.fields(Result)]


def log_of(best_val_loss: float | None) -> dict:
    """As much of a run's log as a row is made of."""
    return {
        "summary": {
            "best_val_loss": best_val_loss,
            "best_val_iter": 1750,
            "median_tokens_per_second": 12345.67,
            "peak_memory_bytes": 400_000_000,
        },
        "environment": {
            "device": "Some CPU, of 2 GHz",
            "threads": 2,
            "python": "3.12.1",
            "torch": "2.13.0",
            "numpy": "2.4.0",
            "cuda": None,
            "driver": None,
            "commit": "0" * 40,
            "dirty": False,
        },
    }


def result(seed: int, loss: float, bar: float = 1.92) -> Result:
    return result_of(log_of(loss), dataclasses.replace(CPU, bar=bar), seed)


def table(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def trained(monkeypatch):
    """Have training give these losses, in turn; what it was asked for."""
    asked = []

    def give(*losses: float | None):
        waiting = list(losses)

        def train(arguments, folder):
            asked.append((arguments, folder))
            return log_of(waiting.pop(0))

        monkeypatch.setattr(baseline, "train", train)
        return asked

    return give


# The recipes


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            GPU,
            {
                **{"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2},
                **{"batch_size": 64, "max_iters": 5000, "device": "cuda"},
            },
        ),
        (
            CPU,
            {
                **{"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0},
                **{"batch_size": 12, "max_iters": 2000, "device": "cpu"},
            },
        ),
    ],
)
def test_the_recipes_are_nanogpts_in_full_precision(recipe, expected):
    settings = configurator.load([str(recipe.config)]).to_dict()
    both = {
        **{"position_encoding": "learned", "normalization": "layernorm_nobias", "bias": False},
        **{"activation": "gelu", "weight_tying": True, "dataset": "shakespeare_char"},
        **{"learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "lr_schedule": "cosine"},
        **{"lr_decay_iters": expected["max_iters"], "beta1": 0.9, "beta2": 0.99},
        **{"weight_decay": 0.1, "grad_clip": 1.0, "gradient_accumulation_steps": 1},
        **{"sequence_length": expected["block_size"], "eval_tokens": 0},
        **{"dtype": "float32", "tf32": False, "attention_backend": "manual", "compile": False},
    }
    expected |= both
    assert {key: settings[key] for key in expected} == expected


def test_the_bars():
    assert pytest.approx(1.47 * 1.05) == GPU.bar
    assert CPU.bar == 1.92


def test_every_measured_row_holds_the_bar():
    header, *measured = table(METRICS)
    assert header == COLUMNS
    rows = [dict(zip(header, row, strict=True)) for row in measured]
    losses = [float(row["best_val_loss"]) for row in rows if row["config"] == CPU.config.stem]
    assert len(losses) >= 2
    assert max(losses) <= CPU.bar
    assert spread(losses) < LARGEST_SPREAD


# What must hold


def test_the_spread_is_that_of_the_two_furthest_apart():
    assert spread([1.9, 1.92, 1.88]) == pytest.approx(0.04 / 1.9)
    assert spread([1.9]) == 0


def test_the_bar_itself_passes_and_better_never_fails():
    assert misses([result(1, 1.92)]) == []
    assert misses([result(1, 1.0), result(2, 1.0)]) == []


def test_every_miss_is_told():
    found = misses([result(1, 1.9), result(2, 1.9201), result(3, 2.5)])
    assert found == [
        "seed 2: 1.9201 is above the bar of 1.92",
        "seed 3: 2.5000 is above the bar of 1.92",
        "seeds differ by 27.27%, not by less than 1%",
    ]


def test_a_difference_of_exactly_one_percent_is_a_miss():
    assert misses([result(1, 199, bar=300), result(2, 201, bar=300)]) != []
    assert misses([result(1, 199, bar=300), result(2, 200.9, bar=300)]) == []


def test_a_run_without_a_finite_loss_is_an_error():
    with pytest.raises(ValueError, match="seed 7: no validation loss is finite"):
        result(7, None)


# The table


def test_rows_are_added_below_one_header(tmp_path):
    path = tmp_path / "metrics" / "table.csv"
    for seed in (1, 2):
        append(result(seed, 1.9 + seed / 1000), path)
    header, first, second = table(path)
    assert header == COLUMNS
    row = dict(zip(header, second, strict=True))
    assert row["seed"] == "2"
    assert row["best_val_loss"] == "1.902"
    assert row["device"] == "Some CPU, of 2 GHz"
    assert row["tokens_per_second"] == "12346"
    assert (row["cuda"], row["torch"]) == ("", "2.13.0")
    assert first[COLUMNS.index("seed")] == "1"


def test_a_table_of_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("seed,loss\n1,2\n")
    with pytest.raises(ValueError, match="columns seed, loss"):
        append(result(1, 1.9), path)
    assert path.read_text() == "seed,loss\n1,2\n"


# The command


def test_it_trains_each_seed_and_passes(trained, tmp_path, capsys):
    asked = trained(1.90, 1.91)
    metrics = tmp_path / "table.csv"
    argv = ["--cpu", "--seeds=3,5", f"--out_dir={tmp_path}", f"--metrics={metrics}"]
    assert main(argv) == PASSED
    assert [arguments for arguments, _ in asked] == [
        [str(CPU.config), "--seed=3", "--data_seed=3"],
        [str(CPU.config), "--seed=5", "--data_seed=5"],
    ]
    assert asked[0][1] != asked[1][1]
    assert [row[COLUMNS.index("seed")] for row in table(metrics)] == ["seed", "3", "5"]
    assert "largest difference 0.52%" in capsys.readouterr().out


def test_a_miss_is_told_and_still_put_on_record(trained, tmp_path, capsys):
    trained(1.9, 2.0)
    metrics = tmp_path / "table.csv"
    assert main(["--cpu", f"--out_dir={tmp_path}", f"--metrics={metrics}"]) == FAILED
    assert "MISSED: seed 1338: 2.0000 is above the bar of 1.92" in capsys.readouterr().out
    assert len(table(metrics)) == 3


def test_without_cpu_it_is_the_recipe_for_a_gpu(trained, tmp_path):
    asked = trained(1.5435)
    flags = [f"--out_dir={tmp_path}", f"--metrics={tmp_path / 'table.csv'}"]
    assert main(["--seeds=1", *flags]) == PASSED
    assert asked[0][0][0] == str(GPU.config)


def test_a_seed_given_twice_is_refused(capsys):
    with pytest.raises(argparse.ArgumentTypeError, match="lists a seed twice"):
        seeds("1,2,1")
    with pytest.raises(SystemExit):
        main(["--seeds=1,1"])
    assert "list each once" in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_is_made_of_a_real_run(tiny_training):
    _, log = tiny_training
    measured = result_of(log, CPU, 5)
    assert (measured.config, measured.seed) == ("baseline_shakespeare_cpu", 5)
    assert 1 < measured.best_val_loss < 3
    assert measured.tokens_per_second > 0
    assert measured.torch


TINY_SHAKESPEARE = [DATA_FOLDER / "shakespeare_char" / name for name in (META_FILE, "input.txt")]


@pytest.mark.slow
@pytest.mark.skipif(
    not any(file.is_file() for file in TINY_SHAKESPEARE),
    reason="Tiny Shakespeare is absent: python data/shakespeare_char/prepare.py",
)
def test_two_seeds_reach_the_bar_on_this_cpu(tmp_path):
    flags = [f"--out_dir={tmp_path}", f"--metrics={tmp_path / 'table.csv'}"]
    assert main(["--cpu", "--seeds=1337,1338", *flags]) == PASSED
