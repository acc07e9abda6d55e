"""Studies: a sweep, and a page about it whose every number and verdict comes from the runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import sweep
from comparison.findings import Findings, GroupResult
from comparison.formatting import assignments
from comparison.plot import write_plot
from comparison.runs import SWEEP_FILE
from comparison.tables import markdown_table, to_markdown
from comparison.tuning_plot import write_tuning_plot
from comparison.verdict_lines import verdict_line
from experiment.selection import select
from inference.verdicts import BETTER, EQUAL, WORSE
from scripts.runs import PASSED, PROJECT, UNDECIDED
from training_logger import RUN_FILE, format_count, read_run


@dataclasses.dataclass(frozen=True)
class Study:
    """A sweep and the page about it."""

    name: str
    """Name of the sweep and of the page in docs/."""
    arguments: tuple[str, ...]
    """Arguments of sweep.py, without the name."""
    introduction: str
    baseline: str
    """The baseline's name on the page."""
    limits: str
    """A list item about what the study cannot say, besides those of every study (LIMITS)."""

    @property
    def page(self) -> Path:
        return PROJECT / "docs" / f"{self.name}.md"

    @property
    def sweep_arguments(self) -> list[str]:
        return [*self.arguments, f"--name={self.name}"]


LIMITS = """\
## Limitations

- **Size.** {parameters} parameters, {tokens} training tokens of one text, {context} characters of
  context. Which change helps depends on all three. The verdicts are about this model; they say
  nothing about models of a useful size.
{of_study}
- **Small differences.** With at most {seeds} seeds and joint intervals for {arms} arms, the minimum
  detectable effect is {detectable} nats at 80 % power (median over the arms), before the allowances
  for tuning. A smaller difference is likely to be reported as inconclusive, which does not mean
  that there is none.
- **Tuning.** Every arm tried {trials} learning rates on one seed and was trained at the fitted
  optimum. The intervals include an allowance of {smallest} to {largest} nats for the error of this
  optimum; where it exceeds the margin, the grid is too coarse to call arms equal. All arms use
  the baseline's warm-up, decay and betas.
- **Text.** The verdicts are about this validation text. "Also better on new text" means that an
  interval which also covers the choice of the text gives the same verdict, "not shown to be better
  on new text" that it does not. A better or worse arm without such a note differs from the baseline
  by much the same amount in all parts of the text. All this is about text of the same kind,
  Shakespeare's plays.
- **Speed.** Seconds and tokens per second were measured in float32 while the runs shared the
  machine with each other and with other processes. Do not compare them between architectures.
"""


def report(
    study: Study, findings: Findings, manifest: dict[str, Any], hours: float, plot: str
) -> str:
    """The page.

    Args:
        study: The study.
        findings: Results of the final runs.
        manifest: Manifest of the sweep.
        hours: Total time of all runs, including tuning.
        plot: Prefix of the names of the figures next to the page.
    """
    return "\n".join(
        [
            study.introduction,
            *_what_was_run(findings, manifest, hours),
            *_answer(study, findings, manifest),
            f"![Validation loss against budgets, and differences]({plot}.png)\n",
            "The learning-rate trials of each arm, with the fitted parabola:\n",
            f"![Loss of each trial against the learning rate]({plot}-tuning.png)\n",
            "## Tables\n",
            to_markdown(findings) + "\n",
            _limits(study, findings, manifest),
        ]
    )


def _what_was_run(findings: Findings, manifest: dict[str, Any], hours: float) -> Iterator[str]:
    run = findings.baseline.group.counted[0]
    machine, training = run.environment, run.config
    yield "## Setup\n"
    yield f"    {manifest['command']}\n"
    yield (
        f"The baseline and {len(manifest['arms']) - 1} arms with up to {len(manifest['seeds'])} "
        "seeds each (sequential testing: an arm stops once its verdict is conclusive, or unlikely "
        "to become so). "
        f"The learning rate of each is fitted to {len(manifest['tuning']['trials'])} trials on a "
        f"separate seed. In total, {len(manifest['runs'])} runs of "
        f"{format_count(run.tokens)} tokens "
        f"({training['max_iters']} steps of {run.tokens // training['max_iters']:,}) of "
        f"`{training['dataset']}`. Seed k gives every arm the same batches in the same order and, "
        "where shapes match, the same initial weights.\n"
    )
    header = ("arm", "adjusted to match size", "parameters", "FLOPs/token", "fitted learning rate")
    yield from markdown_table(header, [_arm_row(arm) for arm in manifest["arms"]])
    yield (
        f"\nMeasured with Python {machine['python']}, torch {machine['torch']}, "
        f"{machine['threads']} thread per run, on {machine['cpu_count']} cores "
        f"({machine['device']}), at commit {str(machine['commit'])[:12]}; the runs took "
        f"{hours:.1f} hours in total.\n"
    )


def _arm_row(arm: dict[str, Any]) -> Sequence[str]:
    return (
        arm["name"],
        assignments(arm["solved"]) or "nothing",
        f"{arm['parameters']:,}",
        f"{arm['flops_per_token']:,}",
        (arm["tuned"] or {}).get("learning_rate", "-"),
    )


def _answer(study: Study, findings: Findings, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each arm, the clearest verdicts first."""
    names = arm_names(findings, manifest)
    order = {BETTER: 0, WORSE: 1, EQUAL: 2}
    rows = sorted(findings.rows[1:], key=lambda row: order.get(row.verdict.word, 3))
    baseline = findings.baseline.group
    yield "## Results\n"
    yield (
        f"{study.baseline} ends at {baseline.loss:.4f} nats per character (sd "
        f"{baseline.deviation:.4f} over {baseline.n} seeds). Differences from {study.baseline}, "
        f"with 95 % intervals{_seeds(findings)}:\n"
    )
    for row in rows:
        yield f"- **{names[row.group.name]}**: {verdict_line(row.verdict, row.terms, row.new_text)}"
    yield ""


def _seeds(findings: Findings) -> str:
    """Which seeds the differences are over, if not over all."""
    over = ", over the n seeds that both share (not the differences of the means in the table)"
    return over if findings.fewer_seeds else ""


def arm_names(findings: Findings, manifest: dict[str, Any]) -> dict[str, str]:
    """The name of each group in the sweep."""
    of_run = {Path(run["folder"]).name: run["arm"] for run in manifest["runs"]}
    return {row.group.name: of_run[row.group.runs[0].run_name] for row in findings.rows}


def _limits(study: Study, findings: Findings, manifest: dict[str, Any]) -> str:
    baseline = findings.baseline.group
    run = baseline.counted[0]
    allowances = [arm["allowance"] for arm in manifest["arms"]]
    return LIMITS.format(
        of_study=study.limits,
        parameters=f"{baseline.architecture['parameters']:,}",
        tokens=format_count(run.tokens),
        context=run.config["sequence_length"],
        seeds=len(manifest["seeds"]),
        arms=len(findings.rows) - 1,
        detectable=f"{median(_detectable(findings.rows[1:])):.4f}",
        trials=len(manifest["tuning"]["trials"]),
        smallest=f"{min(allowances):.4f}",
        largest=f"{max(allowances):.4f}",
    )


def _detectable(rows: Sequence[GroupResult]) -> list[float]:
    return [row.verdict.detectable for row in rows if row.verdict.detectable is not None]


def run_study(study: Study, description: str, argv: Sequence[str]) -> int:
    """Train what is missing and write the page; returns the exit status."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    flags.add_argument("--out_dir", default="out", help="default: %(default)s")
    flags.add_argument(
        "--report", type=Path, default=study.page, help=f"default: docs/{study.name}.md"
    )
    args = flags.parse_args(argv)
    out_dir = Path(args.out_dir).resolve()
    os.chdir(PROJECT)  # which the arguments name their files from
    print(f"python sweep.py {shlex.join(study.sweep_arguments)}")
    flags_of_run = [f"--workers={args.workers}", f"--out_dir={out_dir}"]
    if sweep.main([*study.sweep_arguments, *flags_of_run]):
        return UNDECIDED
    write_report(study, out_dir / "sweeps" / study.name, args.report)
    print(f"written: {args.report}")
    return PASSED


def write_report(study: Study, folder: Path, path: Path) -> None:
    """Write the page of a finished sweep, and its plots beside it."""
    findings = select([str(folder)], None, folder).findings()
    manifest = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    manifest["command"] = shlex.join(["python", "sweep.py", *study.sweep_arguments])
    logs = [read_run(folder / run["folder"] / RUN_FILE) for run in manifest["runs"]]
    hours = sum(log["summary"]["wall_seconds"] for log in logs) / 3600
    path.write_text(report(study, findings, manifest, hours, path.stem), encoding="utf-8")
    write_plot(findings, path.with_suffix(".png"))
    tuning = path.with_name(f"{path.stem}-tuning.png")
    write_tuning_plot(findings.design.declared.curves, tuning)
