"""From GPT-2 to LLaMA, one change at a time, on a CPU; writes docs/study-cpu.md.

python scripts/study_cpu.py
python scripts/study_cpu.py --workers=8 --out_dir=/tmp/study

Trains the missing runs with sweep.py (2.2 hours of run time, two at a time), then writes the report
and its plots. Every number and verdict in the report is computed from the runs.

Exit status: 0 written, 2 some runs did not finish.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
from scripts.runs import PASSED, PROJECT, UNDECIDED, run_script
from training_logger import RUN_FILE, format_count, read_run

NAME = "study-cpu"
REPORT = PROJECT / "docs" / "study-cpu.md"

ARGUMENTS = (
    *("config/arch_gpt2.py", "config/run_study_cpu.py"),
    *("--vary", "position_encoding=rope"),
    *("--vary", "normalization=rmsnorm"),
    *("--vary", "activation=silu"),
    *("--vary", "ffn_type=swiglu"),
    *("--vary", "bias=False"),
    *("--vary", "weight_tying=False"),
    *("--arms", "config/arch_llama.py"),
    *("--tune", "learning_rate=1.4e-3,2e-3,2.8e-3,4e-3,5.6e-3,8e-3,1.13e-2,1.6e-2"),
    *("--until_sure", "--max_seeds=10", f"--name={NAME}"),
)
"""Arguments of sweep.py: six changes from GPT-2 to LLaMA, one at a time, and LLaMA itself."""

INTRODUCTION = """\
# From GPT-2 to LLaMA, one change at a time

Which of the changes from GPT-2 to LLaMA lower the loss at equal parameters and training tokens?
This study makes them one at a time on a very small model, tunes the learning rate of each, and
trains several seeds on a CPU. `python scripts/study_cpu.py` reproduces it and writes this page;
every number, verdict and plot is computed from the runs.
"""

LIMITS = """\
## Limitations

- **Size.** {parameters} parameters, {tokens} training tokens of one text, {context} characters of
  context. Which change helps depends on all three: a position encoding may matter more with a
  longer context, a gated FFN or RMSNorm only in deeper models, and gains early in training may
  vanish later. The verdicts are about this model; they say nothing about models of a useful size.
- **Small differences.** With at most {seeds} seeds and joint intervals for {arms} arms, the minimum
  detectable effect is {detectable} nats at 80 % power (median over the arms), before the allowances
  for tuning. A smaller difference is likely to be reported as inconclusive, which does not mean
  that there is none.
- **Tuning.** Every arm tried {trials} learning rates on one seed and was trained at the fitted
  optimum. The intervals include an allowance of {smallest} to {largest} nats for the error of this
  optimum; where it exceeds the margin, the grid is too coarse to call arms equal. All arms use
  GPT-2's warm-up, decay, betas and initialization.
- **Text.** "Holds on new text" refers to text of the same kind, Shakespeare's plays; the validation
  set contains no other.
- **Speed.** Seconds and tokens per second were measured in float32 while the runs shared the
  machine with each other and with other processes. Do not compare them between architectures.
"""


def report(findings: Findings, manifest: dict[str, Any], hours: float, plot: str) -> str:
    """The page.

    Args:
        findings: Results of the final runs.
        manifest: Manifest of the sweep.
        hours: Total time of all runs, including tuning.
        plot: Prefix of the names of the figures next to the page.
    """
    return "\n".join(
        [
            INTRODUCTION,
            *_what_was_run(findings, manifest, hours),
            *_answer(findings, manifest),
            f"![Validation loss against budgets, and differences]({plot}.png)\n",
            "The learning-rate trials of each arm, with the fitted parabola:\n",
            f"![Loss of each trial against the learning rate]({plot}-tuning.png)\n",
            "## Tables\n",
            to_markdown(findings) + "\n",
            _limits(findings, manifest),
        ]
    )


def _what_was_run(findings: Findings, manifest: dict[str, Any], hours: float) -> Iterator[str]:
    run = findings.baseline.group.counted[0]
    machine, training = run.environment, run.config
    yield "## Setup\n"
    yield f"    {manifest['command']}\n"
    yield (
        f"The baseline and {len(manifest['arms']) - 1} arms with up to {len(manifest['seeds'])} "
        "seeds each (sequential testing: an arm stops once it is conclusive, or unlikely to be). "
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


def _answer(findings: Findings, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each arm, the clearest verdicts first."""
    names = arm_names(findings, manifest)
    order = {BETTER: 0, WORSE: 1, EQUAL: 2}
    rows = sorted(findings.rows[1:], key=lambda row: order.get(row.verdict.word, 3))
    baseline = findings.baseline.group
    yield "## Results\n"
    yield (
        f"GPT-2 ends at {baseline.loss:.4f} nats per character (sd {baseline.deviation:.4f} over "
        f"{baseline.n} seeds). Differences from GPT-2, with 95 % intervals:\n"
    )
    for row in rows:
        yield f"- **{names[row.group.name]}**: {verdict_line(row.verdict, row.terms, row.new_text)}"
    yield ""


def arm_names(findings: Findings, manifest: dict[str, Any]) -> dict[str, str]:
    """The name of each group in the sweep."""
    of_run = {Path(run["folder"]).name: run["arm"] for run in manifest["runs"]}
    return {row.group.name: of_run[row.group.runs[0].run_name] for row in findings.rows}


def _limits(findings: Findings, manifest: dict[str, Any]) -> str:
    baseline = findings.baseline.group
    run = baseline.counted[0]
    allowances = [arm["allowance"] for arm in manifest["arms"]]
    return LIMITS.format(
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


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--workers", type=int, default=2, help="runs at a time (default 2)")
    flags.add_argument("--out_dir", default="out", help="default: %(default)s")
    flags.add_argument("--report", type=Path, default=REPORT, help="default: docs/study-cpu.md")
    return flags


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    out_dir = Path(args.out_dir).resolve()
    os.chdir(PROJECT)  # paths in the arguments are relative to it
    print(f"python sweep.py {shlex.join(ARGUMENTS)}")
    if sweep.main([*ARGUMENTS, f"--workers={args.workers}", f"--out_dir={out_dir}"]):
        return UNDECIDED
    write_report(out_dir / "sweeps" / NAME, args.report)
    print(f"written: {args.report}")
    return PASSED


def write_report(folder: Path, path: Path) -> None:
    """Write the page of a finished sweep, and its plots next to it."""
    findings = select([str(folder)], None, folder).findings()
    manifest = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    manifest["command"] = shlex.join(["python", "sweep.py", *ARGUMENTS])
    logs = [read_run(folder / run["folder"] / RUN_FILE) for run in manifest["runs"]]
    hours = sum(log["summary"]["wall_seconds"] for log in logs) / 3600
    path.write_text(report(findings, manifest, hours, path.stem), encoding="utf-8")
    write_plot(findings, path.with_suffix(".png"))
    tuning = path.with_name(f"{path.stem}-tuning.png")
    write_tuning_plot(findings.design.declared.curves, tuning)


if __name__ == "__main__":
    run_script(main)
