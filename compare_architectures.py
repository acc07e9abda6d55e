"""Compare runs: which architecture is better, by how much, at what cost, and how sure are we.

    python compare_architectures.py --latest 3               the newest runs under out/
    python compare_architectures.py out/a 'out/b-*'          specific runs; folders work too
    python compare_architectures.py out --baseline=gpt2 --format=json
    python compare_architectures.py out/sweeps/NAME          a sweep with its own baseline, or all
                                                             sweeps of --ladder or --baselines
    python compare_architectures.py out --plot=curves.png    also .svg, .pdf; needs matplotlib
    python compare_architectures.py out --html=report.html   an interactive HTML page

Runs that differ only by seed form one arm. An arm is called better or worse only if the
simultaneous 95 % interval of its difference from the baseline excludes 0. It is compared only with
runs of the same recipe on the same data. docs/fairness.md explains verdicts, docs/statistics.md the
formulas.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import CommandParser, run_cli
from comparison.exports import to_csv, to_json
from comparison.findings import Findings
from comparison.logged_keys import EARLIER_KEYS
from comparison.plot import plot_problem, write_plot
from comparison.report.page import write_page
from comparison.runs import LoggedRun
from comparison.tables import markdown_of, text_of, to_markdown, to_text
from comparison.tuning_plot import write_tuning_plot
from errors import UserError, printable, unknown_name
from experiment.selection import DEFAULT_LATEST, Selection, select, series_named
from experiment.series_file import SERIES_FILE
from experiment.series_view import SeriesView, view_series
from inference.verdicts import MARGIN
from training_logger import METRICS_FILE, RUN_FILE

FORMATS = ("text", "json", "csv", "markdown")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = CommandParser(
        description="Compare runs: which architecture is better, by how much, at what cost.",
        keys=EARLIER_KEYS,
    )
    flags.add_argument(
        "runs",
        nargs="*",
        help=(
            f"run directories, sweeps, folders that contain them, {RUN_FILE} or {METRICS_FILE} "
            "files, or globs"
        ),
    )
    flags.add_argument(
        "--latest",
        type=int,
        metavar="N",
        help=(
            "the newest N runs outside sweeps; to compare a sweep, pass its folder (default "
            f"{DEFAULT_LATEST} if no runs are given)"
        ),
    )
    flags.add_argument(
        "--out_dir", default="out", help="folder searched for the newest runs (default: out)"
    )
    flags.add_argument(
        "--baseline",
        metavar="NAME",
        help=(
            "baseline of the comparison: a group, an arm of a sweep (position_encoding=rope), an "
            "architecture, or a prefix of a run name (default: the first arm of a sweep, else "
            "the group of the oldest run)"
        ),
    )
    flags.add_argument(
        "--margin",
        type=float,
        metavar="NATS",
        help=f"largest difference that counts as equal (default: {MARGIN:g}, or the sweep's)",
    )
    flags.add_argument(
        "--tuned",
        default="",
        metavar="KEYS",
        help=(
            "comma-separated keys that were tuned with the same number of trials for every arm, "
            "so they may differ between arms"
        ),
    )
    flags.add_argument(
        "--ratio", action="store_true", help="also show quality against memory and speed"
    )
    flags.add_argument(
        "--format", choices=FORMATS, default="text", help="output format (default: text)"
    )
    flags.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="also plot the curves and the differences: a .png, .svg or .pdf (needs matplotlib)",
    )
    flags.add_argument(
        "--plot_tuning",
        type=Path,
        metavar="FILE",
        help="also plot the tuning curves of a sweep (needs matplotlib)",
    )
    flags.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write an HTML page: tables, plots and curves in one file",
    )
    return flags


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser()
    arguments = flags.parse_args(argv)
    arguments.tuned = [key for key in arguments.tuned.split(",") if key]
    problem = _problem(arguments)
    if problem:
        flags.error(problem)
    return arguments


def _problem(arguments: argparse.Namespace) -> str | None:
    if arguments.runs and arguments.latest is not None:
        return "runs and --latest cannot be combined; drop one"
    if arguments.latest is not None and arguments.latest < 1:
        return f"--latest={arguments.latest} must be at least 1"
    if arguments.margin is not None and not 0 < arguments.margin < float("inf"):
        return f"--margin={arguments.margin:g} must be above 0, in nats per token"
    if arguments.ratio and arguments.format in ("json", "csv"):
        return f"--ratio is for text and markdown; --format={arguments.format} contains it anyway"
    plots = {"--plot": arguments.plot, "--plot_tuning": arguments.plot_tuning}
    found = (plot_problem(path, option) for option, path in plots.items() if path)
    return next((problem for problem in found if problem), None)


def render(findings: Findings, arguments: argparse.Namespace) -> str:
    """Format the findings as requested by `--format`."""
    if arguments.format == "json":
        return to_json(findings)
    if arguments.format == "csv":
        return to_csv(findings)
    if arguments.format == "markdown":
        return to_markdown(findings, ratio=arguments.ratio)
    return to_text(findings, ratio=arguments.ratio, colour=in_colour())


def write_html(findings: Findings, path: Path) -> int:
    """Write the HTML page and print its path to stderr; returns 0, or 1 if it cannot be written."""
    try:
        write_page(findings, path)
    except OSError as error:
        say(f"--html={path} cannot be written: {error.strerror}.")
        return 1
    say(f"report written to {path}")
    return 0


def plot(findings: Findings, path: Path) -> int:
    """Write the figure and print its path to stderr; returns 0, or 1 if it cannot be written."""
    try:
        write_plot(findings, path)
    except (UserError, OSError) as error:
        say(f"--plot={path}: {error}")
        return 1
    apart = [row.group.name for row in findings.rows if row.set_apart]
    if apart:
        say(f"excluded from the plot: {'; '.join(apart)}")
    say(f"plot written to {path}")
    return 0


def plot_tuning(findings: Findings, path: Path) -> int:
    """Plot the tuning curves and print the path to stderr; returns 0, or 1 on failure."""
    try:
        write_tuning_plot(findings.design.declared.curves, path)
    except (UserError, OSError) as error:
        say(f"--plot_tuning={path}: {error}")
        return 1
    say(f"plot written to {path}")
    return 0


def say(message: str) -> None:
    """Print one line to stderr, because a program may be reading the comparison from stdout."""
    print(printable(message), file=sys.stderr)


def _no_run(arguments: argparse.Namespace, chosen: Selection) -> str:
    if arguments.runs:
        return "No run found in the given paths."
    if chosen.problems:
        return f"No other run found under {arguments.out_dir}/."
    return f"No run found under {arguments.out_dir}/. Train one first: python train.py"


def _refuse_unknown_keys(tuned: Sequence[str], runs: Sequence[LoggedRun]) -> None:
    """Raise UserError for a tuned key that no run has."""
    known = dict.fromkeys(key for run in runs for key in run.config)
    for key in tuned:
        if key not in known:
            raise UserError(unknown_name("key in --tuned", key, known))


def compare_series(folder: Path, arguments: argparse.Namespace) -> int:
    """Print the comparison of a series of sweeps; returns 0, or 1 if it cannot be read or drawn."""
    unused = {
        "--tuned": arguments.tuned,
        "--ratio": arguments.ratio,
        "--plot_tuning": arguments.plot_tuning,
        "--format=csv": arguments.format == "csv",
    }
    for option in (option for option, given in unused.items() if given):
        say(f"{option} works for a single sweep; pass one listed in {folder / SERIES_FILE}.")
        return 1
    try:
        view = view_series(folder, arguments.baseline, arguments.margin, say)
        if arguments.plot and view.draw is None:
            raise UserError("--plot works for a single sweep or a ladder; pass one of the sweeps.")
        print(_rendered(view, arguments.format))
        if arguments.plot:
            view.draw(arguments.plot)
            say(f"plot written to {arguments.plot}")
        if arguments.html:
            view.write_page(arguments.html)
            say(f"report written to {arguments.html}")
    except (UserError, OSError) as error:
        say(str(error))
        return 1
    return 0


def _rendered(view: SeriesView, form: str) -> str:
    if form == "json":
        return json.dumps(view.document, indent=1, allow_nan=False)
    if form == "markdown":
        return markdown_of(view.sections)
    return text_of(view.sections, in_colour())


def in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; returns 0, or 1 if there is nothing to compare or to draw."""
    arguments = parse_arguments(argv)
    folder = series_named(arguments.runs, Path(arguments.out_dir))
    if folder:
        return compare_series(folder, arguments)
    try:
        chosen = select(
            arguments.runs,
            arguments.latest,
            Path(arguments.out_dir),
            baseline_given=arguments.baseline is not None,
        )
        for problem in chosen.problems:
            say(f"excluded: {problem}")
        if not chosen.runs:
            say(_no_run(arguments, chosen))
            return 1
        _refuse_unknown_keys(arguments.tuned, chosen.runs)
        findings = chosen.findings(arguments.baseline, arguments.margin, arguments.tuned)
    except UserError as error:
        say(str(error))
        return 1
    print(render(findings, arguments))
    plotted = plot(findings, arguments.plot) if arguments.plot else 0
    if arguments.plot_tuning:
        plotted = plot_tuning(findings, arguments.plot_tuning) or plotted
    written = write_html(findings, arguments.html) if arguments.html else 0
    return plotted or written


if __name__ == "__main__":
    run_cli(main)
