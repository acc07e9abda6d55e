"""The command: the runs it finds, its output in each format, and what it skips."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compare_architectures
from compare_architectures import FORMATS, main
from comparison import json_checks
from comparison.figures import figures_of
from comparison.plot import arms_of
from comparison.report.page import to_html
from comparison.runs import load_run
from comparison.tables import wrapped
from errors import UserError
from experiment.selection import select
from training_logger import CONSOLE_WIDTH, LINE_WIDTH, TrainingLogger

ROOT = Path(compare_architectures.__file__).parent
ARCHITECTURE = {
    "name": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm",
    "parameters": 162_220_800,
    "flops_per_token": 854_654_976,
    "flops_per_token_causal": 798_087_168,
    "attention_ffn_ratio": 0.45,
}
DATA = {
    "dataset": "tiny",
    "fingerprint": "f00d",
    "train_tokens": 900,
    "val_tokens": 100,
    "val_fingerprint": "beef",
}
CONFIG = {
    "learning_rate": 1e-3,
    "seed": 1,
    "data_seed": 1,
    "n_layer": 12,
    "max_iters": 40,
    "run_name": "auto",
}


def log(logger, iter: int, loss: float) -> None:
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
        share_done=iter / 40,
    )
    if iter % 20 == 0:
        logger.log_eval(
            iter=iter,
            val_loss=loss * 40 / iter,
            val_bits_per_byte=1.5 * loss * 40 / iter,
            tokens_seen=iter * 1000,
            seconds=iter / 10,
        )


def make_run(
    folder, *, start="2025-01-01", last=40, loss=2.5, crash=False, config=None, **changes
) -> Path:
    """A run of `last` steps in `folder`, logged each 10 steps and evaluated each 20; at 40 it has
    `loss`.

    With `crash` it is killed after the last: what it left on the disk is all there is.
    """
    settings = {
        "config": CONFIG | (config or {}),
        "architecture": ARCHITECTURE,
        "environment": {"device": "a CPU", "source_sha256": "c0de"},
        "data": DATA,
        "peak_flops": 1e12,
        "max_iters": 100,
    }
    path = folder / "run.json"
    with TrainingLogger(folder, folder.name, **(settings | changes)) as logger:
        for iter in range(10, last + 1, 10):
            log(logger, iter, loss)
        left_by_a_kill = path.read_text()
    document = json.loads(left_by_a_kill if crash else path.read_text())
    document["starts"][-1]["other_cpu_share"] = 0.0  # whatever this machine does besides
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


def make_arm(out, arm: str, losses, **changes) -> None:
    """A run for each loss under `out`, with seeds 1, 2, ..."""
    architecture = ARCHITECTURE | {"name": f"{ARCHITECTURE['name']}-{arm}"}
    for seed, loss in enumerate(losses, start=1):
        make_run(
            out / f"{arm}-{seed}",
            loss=loss,
            architecture=architecture,
            **{"config": {"seed": seed, "data_seed": seed, "arm": arm}, **changes},
        )


@pytest.fixture
def two_arms(tmp_path):
    """A folder with a plain arm and one that is better by 0.2, of four seeds each."""
    make_arm(tmp_path / "out", "plain", [2.50, 2.52, 2.49, 2.51], start="2025-01-01")
    make_arm(tmp_path / "out", "fast", [2.31, 2.30, 2.30, 2.32], start="2025-01-02")
    return tmp_path / "out"


def section(out: str, title: str) -> list[str]:
    """The lines below the title that starts with a text."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    rest = lines[start + 1 :]
    return rest[: rest.index("")] if "" in rest else rest


def compared_runs(out: str) -> list[str]:
    """The names of the runs in a JSON document."""
    return [Path(run).name for group in json.loads(out)["groups"] for run in group["runs"]]


# --- The tables ---


def test_a_single_run_shows_its_results_and_cost(tmp_path, compare):
    code, out, err = compare(make_run(tmp_path / "llama"))
    assert (code, err) == (0, "")
    assert section(out, "Groups") == ["  1  12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm: the baseline"]
    _, row, verdict = section(out, "Final validation loss")
    assert row.split() == ["1", "1", "2.5000", "-", "3.7500", "-", "-", "baseline"]
    assert verdict == "  1  baseline"
    cost = section(out, "Cost")[1]
    # Medians over the intervals but the first: 530 tokens/s x 854.654976 MFLOPs of 1 TFLOP/s.
    assert cost.split() == [
        *("1", "162.2M", "854.7", "MFLOPs", "0.45", "530", "45.3%", "3.2", "GB", "4.0"),
        *("40.00K", "34.2", "TFLOPs"),
    ]


def test_experts_have_a_column_of_active_parameters(tmp_path, compare):
    """The dense group has them, too; a log from before they were logged has none."""
    dense = ARCHITECTURE | {"active_parameters": ARCHITECTURE["parameters"]}
    experts = ARCHITECTURE | {"name": "experts", "active_parameters": 60_000_000}
    old = ARCHITECTURE | {"name": "old"}
    runs = [
        make_run(
            tmp_path / str(day),
            start=f"2025-01-0{day}",
            architecture=architecture,
            config={"arm": day},
        )
        for day, architecture in enumerate((dense, experts, old), start=1)
    ]
    shown = {"1": "162.2M", "2": "60.00M", "3": "-"}
    cost = section(compare(*runs)[1], "Cost")
    assert cost[0].split()[:3] == ["params", "active", "FLOPs/token"]
    assert {line.split()[0]: line.split()[2] for line in cost[1:4]} == shown
    groups = json.loads(compare(*runs, "--format=json")[1])["groups"]
    assert [group["active_parameters"] for group in groups] == [162_220_800, 60_000_000, None]
    page = tmp_path / "page.html"
    compare(*runs, f"--html={page}")
    assert ">active<" in page.read_text()

    runs.pop(1)
    assert "active" not in " ".join(section(compare(*runs)[1], "Cost"))
    assert "active_parameters" not in compare(*runs, "--format=json")[1]
    assert "active_parameters" not in compare(*runs, "--format=csv")[1]
    compare(*runs, f"--html={page}")
    assert ">active<" not in page.read_text()


def test_arms_are_judged_against_the_oldest(two_arms, compare):
    code, out, err = compare(two_arms)
    assert (code, err) == (0, "")
    assert section(out, "Groups")[1] == f"  2  arm=fast: {ARCHITECTURE['name']}-fast"
    rows = section(out, "Final validation loss")
    assert rows[2].split() == [
        *("2", "4", "2.3075", "0.0096", "3.4612", "-0.1975", "[-0.2214,", "-0.1736]", "better"),
    ]
    said = " ".join(" ".join(rows).split())
    assert (
        "2 better: -0.1975 [-0.2214, -0.1736] nats at equal parameters, tokens and FLOPs, n=4, "
        "p<0.001"
    ) in said
    assert "between two baseline runs, 0.0183 (4 seeds)." in said
    assert section(out, "Validation loss at equal tokens (exploratory)") == [
        "  As above: all runs end at equal tokens."
    ]


def test_one_seed_is_never_a_ranking(tmp_path, compare):
    make_arm(tmp_path, "plain", [2.5], start="2025-01-01")
    make_arm(tmp_path, "fast", [1.0], start="2025-01-02")
    _, out, _ = compare(tmp_path)
    said = "  2  inconclusive: the arm has 1 finished run; at least 2 are needed"
    assert said in out.splitlines()
    assert "better" not in out
    assert "Speed-up" not in out


def test_tables_fit_however_long_the_names_are(tmp_path, compare):
    long_name = ARCHITECTURE | {"name": ARCHITECTURE["name"] + "-4KV-QKNorm-SWA256" * 8}
    huge = long_name | {"parameters": 99_999_999_999, "flops_per_token": 1e15}
    make_run(tmp_path / ("long-run-name-" * 4), architecture=long_name)
    make_run(tmp_path / "b", architecture=huge, data=DATA | {"fingerprint": "0" * 64})
    make_run(tmp_path / "c", loss=1e12, config={"some_key": "x" * 300})
    _, out, _ = compare(tmp_path, "--ratio")
    assert max(map(len, out.splitlines())) <= LINE_WIDTH
    assert long_name["name"] in out.replace("\n     ", "")  # whole: no two names look the same


def test_long_names_are_broken_after_separators_and_intervals_not_at_all():
    name = "-".join(["NoBias", "Untied"] * 12)
    first, *middle, last = wrapped(f"1  an arm: {name}")
    assert [first, last[:5]] == ["  1  an arm:", " " * 5]
    assert all(line.endswith("-") for line in middle)
    for length in range(60, 80):
        lines = wrapped(f"{'x' * length} [-0.1365, +0.0078]")
        assert any("[-0.1365, +0.0078]" in line for line in lines)
        assert max(map(len, lines)) <= CONSOLE_WIDTH


def test_budgets_at_which_no_arm_has_two_seeds_are_omitted(tmp_path, compare):
    make_run(tmp_path / "plain")
    costly = ARCHITECTURE | {"flops_per_token": 2 * ARCHITECTURE["flops_per_token"]}
    make_run(tmp_path / "costly", architecture=costly, start="2025-01-02")
    _, out, _ = compare(tmp_path)
    told = " ".join(section(out, "Validation loss at equal FLOPs (exploratory)"))
    assert "Not shown: no arm has two seeds with validation losses at equal FLOPs" in told


def test_what_a_run_does_not_know_is_a_dash(tmp_path, compare):
    code, out, _ = compare(make_run(tmp_path / "young", last=0, peak_flops=None))
    assert code == 0
    assert section(out, "Final validation loss")[1].split()[1:5] == ["0", "-", "-", "-"]
    assert "n=0" not in section(out, "Groups")[0]


def test_color_is_only_used_on_terminals(two_arms, compare, monkeypatch):
    assert "\033" not in compare(two_arms)[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    painted = compare(two_arms)[1]
    assert "\033[32m" in painted
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in compare(two_arms)[1]


def test_the_ratio_view_marks_the_pareto_set(two_arms, compare):
    rows = section(compare(two_arms, "--ratio")[1], "Quality against memory and speed")
    assert rows[1].split() == ["1", "2.5050", *["1.00x"] * 4]
    assert rows[2].split() == ["2", "2.3075", *["1.00x"] * 4, "*"]
    assert "Quality against" not in compare(two_arms)[1]


# --- Other formats ---


def test_json_contains_all_numbers(two_arms, compare):
    code, out, _ = compare(two_arms, "--format=json")
    document = json.loads(out)
    plain, fast = document["groups"]
    assert code == 0
    assert (plain["verdict"], fast["verdict"]) == ("baseline", "better")
    assert document["baseline"] == plain["name"] == f"{ARCHITECTURE['name']}-plain"
    assert document["document_version"] == 2
    assert document["noise_floor"] == pytest.approx(2**0.5 * plain["sd"])
    assert (document["margin"], document["family"]) == (0.01, 1)
    assert (document["declared_arms"], document["declared_seeds"]) == (None, None)
    assert fast["difference"] == pytest.approx(-0.1975)
    assert fast["interval"][0] < fast["difference"] < fast["interval"][1] < 0
    assert 0 < fast["p_value"] == fast["p_adjusted"] < 0.001  # one arm: nothing to correct
    assert (fast["n"], fast["test"], fast["df"]) == (4, "paired t", 3)
    assert fast["at_equal"]["flops"]["verdict"] == "better"
    # From 4.615 at 20K tokens to 2.3075 at 40K: 2.505 after 0.914 of that doubling.
    assert fast["speedup"]["tokens"]["factor"] == pytest.approx(2**0.0856, abs=1e-3)
    assert plain["speedup"]["tokens"]["factor"] is None
    assert fast["changes"] == {"arm": "fast"}
    assert {axis: reading["budget"] for axis, reading in fast["at_equal"].items()} == {
        "tokens": 40_000,
        "flops": 40_000 * ARCHITECTURE["flops_per_token"],
        "seconds": 4.0,
    }


def test_csv_has_a_line_for_each_group(two_arms, compare):
    document = json.loads(compare(two_arms, "--format=json")[1])
    lines = list(csv.DictReader(io.StringIO(compare(two_arms, "--format=csv")[1])))
    assert [line["name"] for line in lines] == [group["name"] for group in document["groups"]]
    fast = lines[1]
    assert float(fast["interval_low"]) == document["groups"][1]["interval"][0]
    assert float(fast["at_equal_flops_loss"]) == pytest.approx(2.3075)
    assert (fast["seeds"], fast["changes"]) == ("1/1; 2/2; 3/3; 4/4", "arm=fast")
    assert lines[0]["interval_low"] == ""
    assert "speedup_tokens" not in fast  # spread over its parts, also where there are none


def test_markdown_has_the_same_tables(two_arms, compare):
    text = compare(two_arms, "--ratio")[1]
    lines = compare(two_arms, "--ratio", "--format=markdown")[1].splitlines()
    titles = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert titles == [line for line in text.splitlines() if line and line[0] != " "]
    row = next(line for line in lines if line.startswith("| 2 | 4 | 2.3075"))
    assert row.split(" | ")[1:] == [
        *("4", "2.3075", "0.0096", "3.4612", "-0.1975", "[-0.2214, -0.1736]", "better |"),
    ]
    header = lines[lines.index(row) - 3]
    assert header.count("|") == row.count("|") == lines[lines.index(row) - 2].count("|")


# --- The plot ---


def test_a_plot_is_written_beside_the_tables(two_arms, compare):
    pytest.importorskip("matplotlib", reason="see requirements-dev.txt")
    settings = {"seed": 1, "data_seed": 1, "learning_rate": 3e-4, "arm": "slow"}
    make_arm(two_arms, "slow", [2.6], start="2025-01-03", config=settings)
    path = two_arms / "figures" / "curves.svg"
    code, out, err = compare(two_arms, f"--plot={path}", "--format=json")
    assert code == 0
    assert json.loads(out) == json.loads(compare(two_arms, "--format=json")[1])
    assert err.splitlines() == [
        f"excluded from the plot: {ARCHITECTURE['name']}-slow",
        f"plot written to {path}",
    ]
    assert "<svg" in path.read_text()


def test_an_unwritable_plot_is_reported(two_arms, compare):
    pytest.importorskip("matplotlib", reason="see requirements-dev.txt")
    path = two_arms / "plain-1" / "run.json" / "curves.png"
    code, out, err = compare(two_arms, f"--plot={path}")
    assert code == 1
    assert "Final validation loss" in out
    assert err.startswith(f"--plot={path}: ")
    assert len(err.splitlines()) == 1


# --- Which runs ---


def test_the_newest_runs_are_found_anywhere_under_out_dir(tmp_path, compare):
    make_run(tmp_path / "old", start="2025-01-01T00:00:00", config={"seed": 1})
    make_run(tmp_path / "deep" / "er" / "newest", start="2025-01-03T00:00:00", config={"seed": 2})
    make_run(tmp_path / "deep" / "newer", start="2025-01-02T00:00:00", config={"seed": 3})
    json_of = ("--out_dir", tmp_path, "--format=json")
    assert compared_runs(compare("--latest", 2, *json_of)[1]) == ["newer", "newest"]
    assert compared_runs(compare("--latest=9", *json_of)[1]) == ["old", "newer", "newest"]


def test_without_arguments_the_three_newest_runs_of_out_are_compared(
    tmp_path, compare, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for day in range(1, 5):
        make_run(tmp_path / "out" / f"day{day}", start=f"2025-01-0{day}", config={"seed": day})
    assert compared_runs(compare("--format=json")[1]) == ["day2", "day3", "day4"]


def test_runs_are_named_by_folder_file_glob_or_the_folder_above(two_arms, compare):
    everything = compared_runs(compare(two_arms, "--format=json")[1])
    assert len(everything) == 8
    plain = [f"plain-{seed}" for seed in range(1, 5)]
    for words in (
        [two_arms / name for name in plain],
        [two_arms / name / "run.json" for name in plain],
        [two_arms / name / "metrics.jsonl" for name in plain],
        [two_arms / "plain-*"],
        [two_arms / "plain-*" / "run.json", two_arms / "plain-1"],  # each counts once
    ):
        document = compare(*words, "--format=json")[1]
        assert compared_runs(document) == plain
    assert compared_runs(compare(two_arms.parent / "**" / "fast-[12]", "--format=json")[1]) == [
        *("fast-1", "fast-2")
    ]


def test_finding_no_run_is_reported(tmp_path, compare):
    code, out, err = compare("--out_dir", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err == f"No run found under {tmp_path / 'nowhere'}/. Train one first: python train.py\n"


def test_a_named_run_that_is_not_there_is_skipped_with_its_name(tmp_path, compare):
    code, out, err = compare(tmp_path / "lost")
    assert (code, out) == (1, "")
    assert f"excluded: {tmp_path / 'lost'}: no such file; pass the folder of a run" in err
    assert "No run found in the given paths." in err
    run = make_run(tmp_path / "there")
    code, out, err = compare(tmp_path / "lost", run, "--format=json")
    assert (code, compared_runs(out)) == (0, ["there"])
    assert "lost" in err


def test_the_baseline_is_named_by_group_or_by_run(two_arms, compare):
    name = f"{ARCHITECTURE['name']}-fast"
    for baseline in (name, "fast", "fast-3"):
        document = json.loads(compare(two_arms, f"--baseline={baseline}", "--format=json")[1])
        assert document["baseline"] == name
        assert document["groups"][1]["verdict"] == "worse"
    code, out, err = compare(two_arms, "--baseline=quick")
    assert (code, out) == (1, "")
    assert "unknown baseline 'quick'" in err
    assert name in err


def test_a_margin_says_what_counts_as_equal(two_arms, compare):
    make_arm(two_arms, "same", [2.501, 2.521, 2.490, 2.512], start="2025-01-03")
    same = json.loads(compare(two_arms, "--margin=0.01", "--format=json")[1])["groups"][2]
    assert same["verdict"] == "equal"
    assert same["words"].startswith("equal within 0.01: +0.0010 [-0.0007, +0.0027] nats at equal")
    same = json.loads(compare(two_arms, "--margin=0.001", "--format=json")[1])["groups"][2]
    assert same["verdict"] == "inconclusive"
    needed = same["seeds_needed"]
    assert same["words"].endswith(f"; detecting a difference of 0.001 takes about {needed} seeds")


def test_a_tuned_key_that_no_run_has_is_refused(two_arms, compare):
    status, _, err = compare(two_arms, "--tuned=lerning_rate")
    assert status == 1
    assert "did you mean 'learning_rate'?" in err


def test_tuned_keys_may_differ_between_arms(two_arms, compare):
    settings = {"seed": 1, "data_seed": 1, "learning_rate": 3e-4, "arm": "slow"}
    make_arm(two_arms, "slow", [2.6], start="2025-01-03", config=settings)
    _, out, _ = compare(two_arms)
    assert section(out, "Not comparable")[-1] == "  3  learning_rate: 0.0003, not 0.001"
    _, out, _ = compare(two_arms, "--tuned=learning_rate")
    assert "Not comparable" not in out
    assert section(out, "Groups")[2].startswith("  3  arm=slow, learning_rate=0.0003: ")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"schema_version": 1, "run_na', "damaged (Unterminated string"),
        ("[1, 2]", "not the log of a run (is a list, not an object)"),
        ('{"name": "a web page"}', "has schema_version null, this code reads 1"),
        ('{"schema_version": 99}', "has schema_version 99, this code reads 1"),
        (
            '{"schema_version": 1, "run_name": 3}',
            "(status is missing; start_time is missing; config is missing; and 6 more)",
        ),
        ("\x00\x00", "damaged ("),
        ("[" * 100_000, "damaged (maximum recursion depth exceeded"),
        ('{"schema_version": ' + "1" * 100_000 + "}", "damaged (Exceeds the limit"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_skipped(tmp_path, compare, text, why):
    make_run(tmp_path / "good")
    bad = tmp_path / "bad" / "run.json"
    bad.parent.mkdir()
    bad.write_text(text)
    code, out, err = compare("--latest=5", "--out_dir", tmp_path, "--format=json")
    assert (code, compared_runs(out)) == (0, ["good"])
    assert err.startswith(f"excluded: {bad}: ")
    assert why in err


def test_an_architecture_without_its_numbers_is_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    rewrite(folder, architecture={"name": "x", "parameters": 1})
    with pytest.raises(ValueError, match=r"architecture\.flops_per_token is missing"):
        load_run(folder)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--latest=0"], "--latest=0 must be at least 1"),
        (["out/a", "--latest=2"], "cannot be combined"),
        (["--latest=two"], "invalid int value"),
        (["--margin=0"], "--margin=0 must be above 0, in nats per token"),
        (["--margin=nan"], "must be above 0"),
        (["--ratio", "--format=json"], "--format=json contains it anyway"),
        (["--plot=curves.gif"], "--plot=curves.gif must end in one of .png, .svg, .pdf"),
    ],
)
def test_invalid_arguments_are_rejected(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# --- What logs may hold ---


def test_nothing_in_a_log_reaches_a_terminal_or_a_spreadsheet_unescaped(tmp_path, compare):
    hostile = "=1+1\x1b[31m\x00\r\n\t\u202e\x9b\ud800$^$"
    escaped = r"=1+1\x1b[31m\x00\r\n\t\u202e\x9b\ud800$^$"
    folder = make_run(
        tmp_path / "run\x1b[31m",
        config={hostile: hostile},
        architecture=ARCHITECTURE | {"name": hostile},
        environment={"device": hostile, hostile: hostile, "torch": hostile},
        crash=True,
    )
    rewrite(folder, run_name=hostile, status=hostile)
    unfinished = make_run(
        tmp_path / "unfinished", last=0, config={hostile: [hostile, {"k": hostile}]}
    )
    rewrite(unfinished, run_name=hostile)
    page, figure = tmp_path / "page.html", tmp_path / "figure.svg"
    written = compare(folder, unfinished, f"--html={page}", f"--plot={figure}")
    views = {view: compare(folder, unfinished, f"--format={view}") for view in FORMATS}
    files = [path.read_text(encoding="utf-8") for path in (page, figure)]
    for text in (*files, *written[1:], *(text for view in views.values() for text in view[1:])):
        assert not {"\x1b", "\x00", "\r", "\x9b", "\u202e", "\ud800"}.intersection(text)
    assert json.loads(views["json"][1])["baseline"] == escaped
    assert all(escaped in text for text in (views["text"][1], views["markdown"][1], files[1]))
    _, out, _ = compare(folder, unfinished, "--format=csv")
    assert next(csv.DictReader(io.StringIO(out)))["name"] == "'" + escaped


def test_csv_quotes_formulas_and_leaves_numbers_alone(two_arms, compare):
    for index, sign in enumerate("=+-@"):
        make_run(
            two_arms / f"z{index}",
            start="2025-01-09",
            architecture=ARCHITECTURE | {"name": f"{sign}1+1", "parameters": 1 + index},
        )
    lines = list(csv.DictReader(io.StringIO(compare(two_arms, "--format=csv")[1])))
    assert {line["name"] for line in lines} >= {"'=1+1", "'+1+1", "'-1+1", "'@1+1"}
    fast = next(line for line in lines if line["name"].endswith("-fast"))
    assert float(fast["difference"]) == pytest.approx(-0.1975)


def test_a_log_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    size = (folder / "run.json").stat().st_size
    monkeypatch.setattr(json_checks, "LARGEST_FILE", size - 1)
    with pytest.raises(UserError, match=f"{size:,} bytes; at most {size - 1:,} are read"):
        load_run(folder)


def test_a_word_longer_than_any_path_is_skipped(tmp_path, compare):
    code, out, err = compare("x" * 5000, make_run(tmp_path / "good"), "--format=json")
    assert (code, compared_runs(out)) == (0, ["good"])
    assert "no such file" in err


# --- Which code ---


def test_runs_of_different_code_are_separated_in_every_view(tmp_path, compare):
    for seed, (arm, digest) in enumerate((("plain", "a" * 64), ("fast", "b" * 64)) * 2):
        environment = {"device": "a CPU", "source_sha256": digest}
        config = {"seed": seed // 2, "data_seed": seed // 2, "arm": arm}
        make_run(
            *(tmp_path / f"run{seed}",), loss=2 + seed / 100, environment=environment, config=config
        )
    said = f"source code differs ({'b' * 12} against {'a' * 12})"
    for view in ("text", "markdown", "csv", "json"):
        assert said in " ".join(compare(tmp_path, f"--format={view}")[1].split())


# --- Runs without an end ---


def test_a_crashed_run_counts_as_far_as_its_metrics_got(tmp_path, compare):
    folder = make_run(tmp_path / "crashed", last=30, crash=True)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "iter": 4')
    stale = json.loads((folder / "run.json").read_text())
    assert stale["summary"]["total_tokens"] == 20_000
    run = load_run(folder / "metrics.jsonl")
    assert run.summary["total_tokens"] == 30_000
    assert run.summary["median_tokens_per_second"] == 525  # of steps 20 and 30
    assert run.summary["total_flops"] == 30_000 * ARCHITECTURE["flops_per_token"]
    assert run.summary["final_val_loss"] == 5.0
    _, out, err = compare(folder)
    assert "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm (running)" in out
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
    assert "metrics.jsonl: line 1 is damaged" in err


# --- The script ---


def test_the_script_runs_without_torch(tmp_path):
    make_run(tmp_path / "run")
    code = (
        "import sys, compare_architectures\n"
        f"status = compare_architectures.main(['--out_dir', {str(tmp_path)!r}])\n"
        "assert not {'torch', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm: the baseline" in done.stdout


def test_the_script_ends_quietly_when_nobody_reads(tmp_path):
    make_run(tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "compare_architectures.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_script_writes_what_the_encoding_lacks_as_escapes(tmp_path):
    make_run(tmp_path / "run", architecture=ARCHITECTURE | {"name": "größer"})
    command = [sys.executable, "compare_architectures.py", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gr\xf6\xdfer: the baseline" in done.stdout


# Sweeps


def make_sweep(folder, *, rate: float = 1e-3) -> Path:
    """A sweep whose second arm started first, with a tuning trial that has an extreme loss."""
    runs = folder / "runs"
    make_arm(runs, "plain", [2.50, 2.52, 2.49, 2.51], start="2025-01-02")
    make_arm(runs, "fast", [2.31, 2.30, 2.30, 2.32], start="2025-01-01")
    for path in runs.glob("fast-*"):
        log = json.loads((path / "run.json").read_text())
        rewrite(path, config=log["config"] | {"learning_rate": rate})
    trial = make_run(folder / "tuning" / "plain-with-rate-s9", loss=1.0, config={"arm": "plain"})
    arms = [(path.name.partition("-")[0], path, False) for path in sorted(runs.iterdir())]
    manifest = {
        "schema_version": 1,
        "arms": [{"name": name, "tuned": {}} for name in ("plain", "fast")],
        "runs": [
            {"arm": arm, "folder": str(path.relative_to(folder)), "tuning": tuning}
            for arm, path, tuning in [*arms, ("plain", trial, True)]
        ],
        "studied": ["learning_rate"],
        "factors": [],
        "seeds": [[seed, seed] for seed in (1, 2, 3, 4)],
        "identity": {},
    }
    (folder / "sweep.json").write_text(json.dumps(manifest))
    return folder


def groups_of(output: str) -> dict[str, dict]:
    return {group["name"]: group for group in json.loads(output)["groups"]}


def test_a_sweep_says_which_arm_is_the_baseline_and_what_is_studied(tmp_path, compare):
    sweep = make_sweep(tmp_path / "out" / "sweeps" / "one", rate=2e-3)
    for word in (sweep, sweep / "sweep.json", "one"):
        code, out, _ = compare(word, f"--out_dir={tmp_path / 'out'}", "--format=json")
        groups = groups_of(out)
        plain, fast = groups["plain"], groups["fast"]
        assert (code, plain["verdict"], fast["verdict"]) == (0, "baseline", "better")
        assert (plain["n"], fast["n"]) == (4, 4)
        assert fast["changes"]["learning_rate"] == 2e-3  # part of the arm, not a condition


@pytest.mark.parametrize("word", ["", "sweeps", "sweeps/o*"])
def test_tuning_trials_are_not_seeds_of_an_arm(tmp_path, compare, word):
    """They were chosen for their losses."""
    make_sweep(tmp_path / "sweeps" / "one")
    code, out, _ = compare(tmp_path / word, f"--out_dir={tmp_path}", "--format=json")
    assert code == 0
    assert [group["n"] for group in groups_of(out).values()] == [4, 4]


def test_trials_can_be_looked_at_by_themselves(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    code, out, _ = compare(sweep / "tuning", "--format=json")
    assert code == 0
    assert [group["loss"] for group in groups_of(out).values()] == [1.0]


def test_an_arm_never_stands_in_for_a_baseline_that_is_missing(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    for path in (sweep / "runs").glob("plain-*"):
        (path / "run.json").unlink()
    code, out, err = compare(sweep)
    assert (code, out) == (1, "")
    assert "no baseline run of" in err
    assert "--baseline" in err
    code, out, err = compare(sweep, "--baseline=fast")
    assert code == 0
    assert err == f"excluded: 4 runs of {sweep} that have not started\n"


def test_arms_keep_the_names_they_were_asked_by(tmp_path, compare):
    """The key that was varied first, what follows from it last; the architecture once."""
    sweep = make_sweep(tmp_path / "sweep")
    manifest = json.loads((sweep / "sweep.json").read_text())
    text = json.dumps(manifest | {"varied": ["some_key"]})
    (sweep / "sweep.json").write_text(text.replace('"fast"', '"some_key=x"'))
    for path in (sweep / "runs").glob("fast-*"):
        config = json.loads((path / "run.json").read_text())["config"]
        rewrite(path, config={"a_derived_key": 8, **config, "some_key": "x"})
    _, out, _ = compare(sweep)
    assert section(out, "Groups") == [
        f"  1  plain: the baseline, {ARCHITECTURE['name']}-plain",
        "  2  some_key=x: a_derived_key=8, arm=fast",
    ]
    document = compare(sweep, "--format=json", "--baseline=some_key=x")[1]
    assert json.loads(document)["baseline"] == "some_key=x"
    arm = json.loads(compare(sweep, "--format=json")[1])["groups"][1]
    assert list(arm["changes"]) == ["some_key", "a_derived_key", "arm"]
    assert arm["architecture"] == f"{ARCHITECTURE['name']}-fast"
    findings = select([str(sweep)], None, tmp_path).findings()
    drawn = arms_of(figures_of(findings))
    assert [arm.label for arm in drawn] == ["1  baseline: plain", "2  some_key=x"]
    assert '<span class="name">some_<wbr>key=<wbr>x</span>' in to_html(findings)


def test_runs_that_failed_before_they_logged_anything_are_named(tmp_path, compare):
    sweep = make_sweep(tmp_path / "sweep")
    (sweep / "output").mkdir()
    for name in ("fast-1", "fast-2", "fast-3"):
        (sweep / "runs" / name / "run.json").unlink()
    for name in ("fast-1", "plain-1"):
        (sweep / "output" / f"{name}.txt").write_text("Traceback")
    code, _, err = compare(sweep)
    assert (code, err.splitlines()) == (
        0,
        [
            f"excluded: {sweep}/runs/fast-1: it failed before it logged anything, or has just "
            f"started; see {sweep}/output/fast-1.txt",
            f"excluded: 2 runs of {sweep} that have not started",
        ],
    )


def test_the_newest_runs_are_those_in_no_sweep(tmp_path, compare):
    sweep = make_sweep(tmp_path / "sweeps" / "one")
    told = "excluded: 8 runs of sweeps; compare the newest sweep with: python"
    code, out, err = compare("--latest=2", f"--out_dir={tmp_path}")
    assert (code, out) == (1, "")
    assert f"{told} compare_architectures.py {sweep}" in err
    make_run(tmp_path / "alone")
    code, out, err = compare("--latest=2", f"--out_dir={tmp_path}", "--format=json")
    assert (code, compared_runs(out)) == (0, ["alone"])
    assert told in err


def test_two_sweeps_are_compared_with_the_baseline_of_the_first(tmp_path, compare):
    for name in ("one", "two"):
        make_sweep(tmp_path / name)
    code, out, _ = compare(tmp_path / "one", tmp_path / "two", "--format=json")
    assert code == 0
    verdicts = {name: group["verdict"] for name, group in groups_of(out).items()}
    assert verdicts["plain"] == "baseline"


def test_a_damaged_manifest_is_reported(tmp_path, compare):
    (tmp_path / "sweep.json").write_text("{")
    code, out, err = compare(tmp_path)
    assert (code, out) == (1, "")
    assert f"excluded: {tmp_path / 'sweep.json'}: damaged (" in err
    code, out, _ = compare(tmp_path, make_run(tmp_path / "good"), "--format=json")
    assert (code, compared_runs(out)) == (0, ["good"])


def declare(sweep: Path, **declared) -> None:
    manifest = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps(manifest | declared))


ALLOWED = [
    {"name": "plain", "tuned": {}, "allowance": 0.2},
    {"name": "fast", "tuned": {}, "allowance": 0.2},
]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"seeds": [[seed, seed] for seed in range(1, 6)]}, "4 of 5 declared seeds of fast"),
        ({"arms": ALLOWED}, "-0.1975 ["),  # by less than the allowance
        ({"seeds": [[s, s] for s in range(1, 7)], "schedule": [{"n": 6, "alpha": 0.05}]}, ""),
    ],
)
def test_declarations_apply_however_a_sweep_is_selected(tmp_path, compare, declared, said):
    """A part of a sweep, its runs, or a sweep beside another run."""
    sweep = make_sweep(tmp_path / "out" / "sweeps" / "one")
    lone = make_run(tmp_path / "lone", config={"arm": "lone"})
    assert groups_of(compare(sweep, "--format=json")[1])["fast"]["verdict"] == "better"
    declare(sweep, **declared)
    for words in ([sweep], [sweep / "runs"], [tmp_path / "out"], [sweep, lone]):
        fast = groups_of(compare(*words, "--format=json")[1])["fast"]
        assert fast["verdict"] == "inconclusive"
        assert said in fast["words"]
        assert all(own["verdict"] in (None, "inconclusive") for own in fast["at_equal"].values())


def test_looks_hold_beside_another_run(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    declare(sweep, looks=[3, 4])
    alone = groups_of(compare(sweep, "--format=json")[1])["fast"]
    code, out, _ = compare(sweep, make_run(tmp_path / "lone"), "--format=json")
    beside = groups_of(out)["fast"]
    assert code == 0
    assert beside["interval"][0] <= alone["interval"][0]
    assert any("confidence sequence" in note for note in json.loads(out)["notes"])
    declare(sweep, looks=[4])
    out = compare(sweep, tmp_path / "lone", "--format=json")[1]
    assert not any("not declared" in note for note in json.loads(out)["notes"])


def test_a_part_without_the_baseline_is_compared_with_its_oldest_arm(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    code, out, _ = compare(*sorted((sweep / "runs").glob("fast-*")), "--format=json")
    assert (code, json.loads(out)["baseline"]) == (0, "fast")


def copy_of(sweep: Path, name: str, shift: int) -> Path:
    """The same sweep with other seeds."""
    other = Path(shutil.copytree(sweep, sweep.with_name(name)))
    for path in (other / "runs").iterdir():
        config = json.loads((path / "run.json").read_text())["config"]
        seeds = {key: config[key] + shift for key in ("seed", "data_seed")}
        rewrite(path, config=config | seeds, run_id=f"{name} {path.name}")
    return other


def test_another_sweep_of_the_same_arms_adds_seeds_after_a_look(tmp_path, compare):
    one = make_sweep(tmp_path / "one")
    declare(one, looks=[4])
    alone = json.loads(compare(one, "--format=json")[1])
    assert not any("confidence sequence" in note for note in alone["notes"])
    other = copy_of(one, "two", 100)
    both = json.loads(compare(one, other, "--format=json")[1])
    assert {group["name"]: group["n"] for group in both["groups"]} == {"plain": 8, "fast": 8}
    assert any("after a verdict had been shown at 4" in note for note in both["notes"])


def test_a_copy_of_a_run_is_not_another_seed(two_arms, compare):
    """Otherwise copying runs and editing their seeds would increase the number of seeds."""
    before = json.loads(compare(two_arms, "--format=json")[1])["groups"][1]
    for seed in range(1, 5):
        for arm in ("plain", "fast"):
            copy = Path(shutil.copytree(two_arms / f"{arm}-{seed}", two_arms / f"{arm}-{seed}-b"))
            config = json.loads((copy / "run.json").read_text())["config"]
            rewrite(copy, config=config | {"seed": seed + 10, "data_seed": seed + 10})
    after = json.loads(compare(two_arms, "--format=json")[1])["groups"][1]
    assert (after["n"], after["interval"]) == (4, before["interval"])
    copy, original = two_arms / "fast-1-b", two_arms / "fast-1"
    assert f"{copy}: a copy of {original} (same run_id)" in after["excluded"]


def test_a_key_that_was_tuned_by_hand_is_named(two_arms, compare):
    for path in two_arms.glob("fast-*"):
        config = json.loads((path / "run.json").read_text())["config"]
        rewrite(path, config=config | {"learning_rate": 3e-3})
    code, out, _ = compare(two_arms, "--tuned=learning_rate")
    assert code == 0
    assert (
        "Note: learning_rate was tuned outside this comparison; the interval includes no "
        "allowance for that."
    ) in " ".join(out.split())


def test_a_baseline_that_was_chosen_afterwards_has_wider_intervals(tmp_path, compare):
    """Of many equal arms, the worst makes others look better: intervals hold for all pairs."""
    one = make_sweep(tmp_path / "one")
    declare(one, arms=[*json.loads((one / "sweep.json").read_text())["arms"], *THREE_MORE])
    declared, chosen = (
        json.loads(compare(one, "--format=json", *named)[1]) for named in ((), ("--baseline=fast",))
    )
    assert (declared["family"], chosen["family"]) == (4, 10)
    widths = [
        own["groups"][1]["interval"][1] - own["groups"][1]["interval"][0]
        for own in (declared, chosen)
    ]
    assert widths[1] > 1.2 * widths[0]
    [note] = [own for own in chosen["notes"] if "chosen after seeing" in own]
    assert note.startswith("fast is not the declared baseline")
    assert "for all 10 pairs of arms" in note
    said = " ".join(compare(one, "--baseline=fast")[1].split())
    assert "Simultaneous 95 % intervals for all 10 pairs of arms." in said
    assert not any("chosen after seeing the results" in own for own in declared["notes"])
    again = json.loads(compare(one, "--format=json", "--baseline=plain")[1])
    assert again["family"] == 4


THREE_MORE = [{"name": name, "tuned": None} for name in ("x", "y", "z")]


def test_seeds_added_by_hand_were_not_declared(tmp_path, compare):
    one = make_sweep(tmp_path / "one")
    hand = copy_of(one, "two", 100)
    (hand / "sweep.json").unlink()
    notes = json.loads(compare(one, hand, "--format=json")[1])["notes"]
    assert any("was not declared before the runs" in note for note in notes)


def test_a_sweep_can_be_given_by_different_paths(tmp_path, compare, monkeypatch):
    """By a relative path, whose runs also have an absolute one."""
    sweep = make_sweep(tmp_path / "out" / "one")
    declare(sweep, margin=0.002)
    monkeypatch.chdir(tmp_path)
    for word in (sweep, "out/one", "out/one/runs", "out/one/../one/runs"):
        document = json.loads(compare(word, "--format=json")[1])
        assert (document["margin"], document["declared_seeds"]) == (0.002, 4)


def test_a_margin_that_was_not_declared_is_noted(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    declare(sweep, margin=0.002)
    lone = make_run(tmp_path / "lone")
    assert json.loads(compare(sweep, lone, "--format=json")[1])["margin"] == 0.002
    notes = json.loads(compare(sweep, "--margin=0.3", "--format=json")[1])["notes"]
    assert "Equal means within 0.3 here; 0.002 was declared before the runs." in notes


def test_trials_get_no_verdict(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    manifest = json.loads((sweep / "sweep.json").read_text())
    trials = [{**run, "tuning": True} for run in manifest["runs"]]
    declare(sweep, runs=trials)
    fast = groups_of(compare(sweep / "runs", "--tuned=learning_rate", "--format=json")[1])
    words = [group["words"] for group in fast.values()]
    assert any("tuning trials, which cannot be used for a verdict" in (own or "") for own in words)


def test_the_runs_of_a_sweep_are_not_compared_without_its_manifest(tmp_path, compare):
    sweep = make_sweep(tmp_path / "one")
    whole = (sweep / "sweep.json").read_text()
    (sweep / "sweep.json").write_text(whole[:-40])
    code, out, err = compare(sweep / "runs")
    assert (code, out) == (1, "")
    assert "the manifest of its sweep cannot be read" in err
