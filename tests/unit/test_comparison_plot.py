"""The figure of a comparison: its content, the range of its axes, and its notes on omissions."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest

from comparison.bands import band
from comparison.design import Design
from comparison.figures import figures_of
from comparison.findings import compare
from comparison.plot import arms_of, draw, plot_problem, spread, write_plot
from comparison.runs import load_run
from tests.parametrized import one_in
from tests.simulated import simulated_arm, simulated_run
from tests.unit.test_compare_architectures import make_run

pytest.importorskip("matplotlib", reason="see requirements-dev.txt")

PLAIN = [3.00, 3.02, 2.99, 3.01]
FAST = [2.90, 2.91, 2.90, 2.92]


def arms(*others, **settings):
    """Runs of a plain arm and of others, each with a key of its own."""
    runs = simulated_arm("plain", PLAIN, start="2025-01-01")
    for index, losses in enumerate(others, start=1):
        runs += simulated_arm(
            f"arm{index}",
            losses,
            model={"n_head": index},
            start=f"2025-01-{index + 1:02}",
            **settings,
        )
    return runs


def panels_of(figure):
    """The panels of curves, and the legend below them."""
    curves, key = figure.subfigs
    return curves.axes, key.axes[0]


def lines_of(axes) -> dict:
    """The lines of an arm, by its number."""
    return {line.get_gid(): line for line in axes.lines if (line.get_gid() or "").isdigit()}


def texts_of(figure) -> list[str]:
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


# --- Curves ---


def test_lines_and_bands_are_those_of_the_groups():
    findings = compare(arms(FAST))
    curves, _ = panels_of(draw(findings))
    assert len(curves) == 3
    for panel, axis in zip(curves, ("tokens", "flops", "seconds"), strict=True):
        lines = lines_of(panel)
        assert lines.keys() == {"1", "2"}
        for (number, line), row, filled in zip(
            lines.items(), findings.rows, panel.collections, strict=True
        ):
            found = band(row.group, axis)
            assert list(line.get_xdata()) == found.budgets, number
            assert list(line.get_ydata()) == found.mean
            corners = {tuple(corner) for corner in filled.get_paths()[0].vertices}
            assert corners == {
                *zip(found.budgets, found.low, strict=True),
                *zip(found.budgets, found.high, strict=True),
            }


def test_axes_say_what_they_are_in_si_units():
    figure = draw(compare(arms(FAST)))
    curves, key = panels_of(figure)
    assert [panel.get_xlabel() for panel in curves] == [
        "training tokens (log scale)",
        "training FLOPs (log scale)",
        "training time (log scale)",
    ]
    assert curves[0].get_ylabel() == "validation loss (nats per token)"
    assert curves[0].xaxis.get_major_formatter()(50_000) == "50k"
    assert curves[1].xaxis.get_major_formatter()(5e12) == "5T"
    assert curves[2].xaxis.get_major_formatter()(2000) == "2 ks"
    assert "95 % interval" in key.get_xlabel()
    assert "mean of 4 seeds" in " ".join(texts_of(figure))


def test_only_budgets_that_can_be_compared_have_a_panel():
    curves, _ = panels_of(draw(compare(arms(FAST, device="another CPU"))))
    assert [panel.get_xlabel() for panel in curves] == [
        "training tokens (log scale)",
        "training FLOPs (log scale)",
    ]


def test_the_first_losses_do_not_squash_the_last():
    untrained = [(0, 10.8), (1, 9.0), (25, 3.9), (50, 3.5), (75, 3.2)]
    runs = [
        simulated_run(arm, seed, model={"arm": arm}, curve=[*untrained, (100, loss)])
        for arm, losses in (("a", (3.0, 3.1)), ("b", (3.05, 3.15)))
        for seed, loss in enumerate(losses)
    ]
    curves, _ = panels_of(draw(compare(runs)))
    for panel in curves:
        low, high = panel.get_ylim()
        assert 2.9 < low < 3.0
        assert 3.9 < high < 4.0  # the loss at a quarter of the budget
        assert panel.get_xlim()[0] > lines_of(panel)["1"].get_xdata()[0]


def test_an_arm_far_above_the_others_is_named_and_leaves_room_for_them():
    figure = draw(compare(arms(FAST, [9.0, 9.1, 9.2, 9.3], [2.95, 2.96, 2.97, 2.98])))
    curves, key = panels_of(figure)
    assert curves[0].get_ylim()[1] < 4
    assert "Above the losses shown: 3 ends at 9.1500." in texts_of(figure)
    assert key.get_xlim()[1] < 1
    arrow = next(line for line in key.lines if line.get_marker() == ">")
    assert list(arrow.get_xdata()) == [key.get_xlim()[1]]
    assert {text.get_text() for text in curves[0].texts} == {"1", "2", "4"}


def test_one_evaluation_is_a_whole_dot_that_no_line_enters():
    runs = arms(FAST) + simulated_arm("dot", [3.2, 3.3], model={"n_head": 9}, start="2025-02-01")
    runs = [
        dataclasses.replace(run, eval_steps=run.eval_steps[-1:])
        if run.run_name.startswith("dot")
        else run
        for run in runs
    ]
    figure = draw(compare(runs))
    panel = panels_of(figure)[0][0]
    by_marker = {line.get_marker(): line for line in lines_of(panel).values()}
    dot = by_marker["o"]
    assert not dot.get_clip_on()
    leader = next(t for t in panel.texts if t.get_text() == dot.get_gid()).arrow_patch
    assert leader.shrinkB >= dot.get_markersize() / 2


def test_few_evaluations_are_drawn_from_step_0_on():
    curves, _ = panels_of(draw(compare(arms(FAST))))
    for panel in curves:
        assert panel.get_xlim()[0] == 0
        assert panel.get_xticks()[0] == 0


def test_two_evaluations_make_a_line_that_is_in_sight():
    runs = [
        simulated_run(arm, seed, model={"arm": arm}, curve=[(0, 4.2), (100, 3 + seed / 10)])
        for arm in ("a", "b")
        for seed in (1, 2)
    ]
    curves, _ = panels_of(draw(compare(runs)))
    low, high = curves[0].get_ylim()
    assert low < 3.1 < 4.2 < high


@pytest.mark.parametrize("last", one_in(3, [3, 17, 100, 999, 2_000, 1_000_000]))
@pytest.mark.parametrize("first", one_in(2, [0.01, 0.1, 0.3, 0.9]))
def test_ticks_never_meet(last, first):
    steps = [0, *(max(1, round(last * share)) for share in (first, 0.95)), last]
    curve = [(step, 4 - step / last) for step in dict.fromkeys(steps)]
    runs = [simulated_run(arm, 1, model={"arm": arm}, curve=curve) for arm in "ab"]
    figure = draw(compare(runs))
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    boxes = [
        label.get_window_extent(renderer)
        for panel in panels_of(figure)[0]
        for label in panel.get_xticklabels()
        if label.get_text()
        and panel.get_xlim()[0] <= label.get_position()[0] <= panel.get_xlim()[1]
    ]
    boxes.sort(key=lambda box: box.x0)
    assert len(boxes) >= 3
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_the_only_run_is_drawn_whole_with_its_training_loss(tmp_path):
    metrics = make_run(tmp_path / "run") / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    spiking = next(line for line in lines if line["kind"] == "train" and line["iter"] == 20)
    spiking["loss"] = 30.5
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = draw(compare([load_run(tmp_path / "run")]))
    curves, key = figure.subfigs
    assert key.axes == []  # its title says what it is
    validation, training = curves.axes[0].lines
    assert list(training.get_ydata())[1] == 30.5
    assert curves.axes[0].get_ylim()[1] > 30.5
    assert curves.axes[0].get_xlim()[0] == 0
    assert curves.axes[0].get_ylabel() == "loss (nats per token)"
    assert curves.axes[0].get_xlabel() == "training tokens"
    assert "validation loss (black) and training (blue)" in " ".join(texts_of(figure))


# --- The key ---


def test_intervals_are_those_of_the_verdicts():
    findings = compare(arms(FAST, [3.01, 3.03, 3.05, 2.99]))
    _, key = panels_of(draw(findings))
    intervals = lines_of(key)
    assert intervals.keys() == {"2", "3"}
    for number, row in zip("23", findings.rows[1:], strict=True):
        assert tuple(intervals[number].get_xdata()) == row.verdict.interval
    shaded = key.patches[0].get_extents().transformed(key.transData.inverted())
    assert (shaded.x0, shaded.x1) == pytest.approx((-0.01, 0.01))
    assert "\N{MINUS SIGN}0.0975  better" in texts_of(key)


def test_an_infinite_interval_spans_the_axis():
    """That of a confidence sequence is, while seeds are few."""
    findings = compare(arms(FAST[:3]), design=Design(seeds=3, looks=(2,)))
    assert findings.rows[1].verdict.interval == (-math.inf, math.inf)
    _, key = panels_of(draw(findings))
    low, high = key.get_xlim()
    assert -0.2 < low < -0.1 < 0.01 < high < 0.1
    assert tuple(lines_of(key)["2"].get_xdata()) == (low, high)


def test_without_verdicts_the_legend_has_no_axis():
    figure = draw(compare(simulated_arm("a", [3.0]) + simulated_arm("b", [2.9], start="2025-02")))
    _, key = panels_of(figure)
    assert lines_of(key) == {}
    assert not key.xaxis.get_visible()
    said = "inconclusive: the arm has 1 finished run; at least 2 are needed"
    assert {"Validation loss of one seed", said} <= set(texts_of(figure))


def test_labels_are_what_differs_unless_that_is_long():
    long_change = {"arm": "x" * 200}
    runs = arms(FAST) + simulated_arm("other", FAST, model=long_change, start="2025-02-01")
    drawn = arms_of(figures_of(compare(runs)))
    assert [arm.label for arm in drawn] == [
        "1  baseline: arch-plain",
        "2  n_head=1",
        "3  arch-other",
    ]


def test_a_long_name_is_wrapped_and_cut():
    runs = simulated_arm("12L-12H-768D-" * 20, PLAIN)
    (arm,) = arms_of(figures_of(compare(runs)))
    assert arm.lines == 2
    assert max(map(len, arm.label.split("\n"))) <= 60
    assert arm.label.endswith(" ...")


def test_no_two_of_35_arms_look_alike():
    runs = [simulated_run(f"a{i}", model={"n_head": i}, start=f"2025-01-{i:02}") for i in range(36)]
    drawn = arms_of(figures_of(compare(runs)))
    assert drawn[0].line["color"] == "black"
    assert len({(arm.colour, str(arm.line["linestyle"])) for arm in drawn}) == 36
    assert len({arm.colour for arm in drawn[:8]}) == 8
    assert [arm.colour for arm in drawn].count("black") == 1


def test_incomparable_groups_are_excluded_with_a_note():
    runs = arms(FAST)
    runs += simulated_arm("apart", FAST, training={"learning_rate": 3e-4}, start="2025-02-01")
    figure = draw(compare(runs))
    assert lines_of(panels_of(figure)[0][0]).keys() == {"1", "2"}
    assert "Excluded because not comparable with the baseline: arch-apart." in texts_of(figure)


def test_a_note_says_that_differences_are_over_shared_seeds():
    note = "Differences are over the seeds that an arm shares with the baseline."
    assert note in texts_of(draw(compare(arms(FAST[:3]))))
    assert note not in texts_of(draw(compare(arms(FAST))))


def test_one_note_is_enough_for_all_allowances():
    runs = arms(FAST, [3.01, 3.03, 3.05, 2.99])
    design = Design(allowances={(None, None): 0.004})
    notes = " ".join(texts_of(draw(compare(runs, design=design))))
    assert notes.count("The intervals include allowances for tuning, which the tables list.") == 1
    assert "0.0040" not in notes


@pytest.mark.parametrize("curve", [[(0, 9.0), (100, None)], [(0, 9.0)]])
def test_an_arm_without_a_loss_is_only_in_the_legend(curve):
    runs = arms(FAST) + simulated_arm("lost", [None], curve=curve, start="2025-02-01")
    figure = draw(compare(runs))
    curves, _ = panels_of(figure)
    assert [lines_of(panel).keys() for panel in curves] == [{"1", "2"}] * 3
    assert "No finite loss after step 0: 3." in texts_of(figure)
    assert "3  arch-lost" in texts_of(figure)


def test_nothing_to_plot_is_an_error():
    runs = [simulated_run(curve=[(0, 9.0)])]
    with pytest.raises(ValueError, match="nothing to plot: no run has a finite validation loss"):
        draw(compare(runs))


def test_numbers_are_spread_no_more_than_they_must():
    assert spread([1.0, 2.0, 3.0], 0.5) == [1.0, 2.0, 3.0]
    assert spread([], 0.5) == []
    assert spread([1.0, 1.0], 0.5) == pytest.approx([0.75, 1.25])
    # The pair at 1 is pushed onto its neighbour, so that all three share one middle.
    assert spread([1.0, 1.0, 1.2, 5.0], 0.5) == pytest.approx(
        [0.5667, 1.0667, 1.5667, 5.0], abs=1e-4
    )


# --- Files ---


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("a.png", b"\x89PNG"),
        ("a.SVG", b"<?xml"),
        pytest.param("a.pdf", b"%PDF-", marks=pytest.mark.slow),
    ],
)
def test_files_by_extension_the_same_each_time(tmp_path, name, begins):
    findings = compare(arms(FAST))
    path = tmp_path / "new" / "folder" / name
    write_plot(findings, path)
    content = path.read_bytes()
    assert content.startswith(begins)
    assert len(content) > 5000
    write_plot(findings, path)
    assert path.read_bytes() == content


def test_unwritable_plots_are_detected_early(monkeypatch):
    assert plot_problem(Path("a.png")) is None
    for name in ("curves.gif", "curves", "png"):
        assert plot_problem(Path(name)) == f"--plot={name} must end in one of .png, .svg, .pdf"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plot_problem(Path("a.png")) == "--plot needs matplotlib: pip install matplotlib"
