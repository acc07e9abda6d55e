"""Answer the questions of docs/recipes.md by running their commands, and write the page.

python scripts/questions.py
python scripts/questions.py --only=moe

Runs in a clone of the checkout under out/questions, as it is committed, one command at a time.
Answers are kept there: the same command continues after an interruption; delete the folder to ask
again. With --only, prints one answer and writes no page.

Exit status: 0 written, 2 a command failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, unknown_name
from scripts.runs import PASSED, PROJECT, RunFailed, run_script
from training.hardware import device_name
from training.log_text import format_duration
from training.machine_load import OtherLoad

PAGE = PROJECT / "docs" / "recipes.md"
FOLDER = PROJECT / "out" / "questions"
DATASET = "data/shakespeare_char"
FAST = "config/run_shakespeare_fast_cpu.py"
BUSY = 0.05
"""Load by other processes above which the page mentions it."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A command, and the parts of its output that the page shows.

    Attributes:
        command: The command as typed in the project's directory.
        show: Pairs of prefixes: lines are shown from the first one that starts with the first
            prefix up to the next one that starts with the second. "": the first line, or the end.
        status: The expected exit status.
    """

    command: str
    show: tuple[tuple[str, str], ...] = ()
    status: int = 0


@dataclasses.dataclass(frozen=True)
class Question:
    """A section of the page.

    Attributes:
        name: For --only.
        title: The question.
        method: How the command answers it.
        steps: Commands, in order.
        reading: How to read the output.
        files: Files that the reader writes first, by name.
    """

    name: str
    title: str
    method: str
    steps: tuple[Step, ...]
    reading: str
    files: dict[str, str] = dataclasses.field(default_factory=dict)


VERDICTS = (("Sweep ", "  Minimum"), ("Groups of ", "Cost"))
"""The plan of a sweep, and the verdicts at its end."""
OWN_ATTENTION = '''\
import torch
from torch import Tensor, nn

from components.attention import Attention
from components.context import Context
from components.layer_config import LayerConfig
from components.mixers import MIXERS


@MIXERS.register("scaled_attention", label="ScaledAttn")
class ScaledAttention(Attention):
    """Attention with its output multiplied by a learned factor per channel.

    LayerScale (Touvron et al. 2021, arXiv 2103.17239).
    """

    def __init__(self, config: LayerConfig):
        super().__init__(config)
        self.factors = nn.Parameter(torch.full((config.n_embd,), 0.5))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return super().forward(x, context) * self.factors
'''

QUESTIONS = (
    Question(
        name="qk-norm",
        title="Is QK norm worth it at this size?",
        method="Remove it and compare, with the same seeds, batches and number of parameters:",
        steps=(
            Step(f"python sweep.py {FAST} --vary qk_norm=False --seeds=3 --name=qk-norm", VERDICTS),
        ),
        reading=(
            "Only a verdict of *better*, *worse* or *equal* answers the question; *inconclusive* "
            "means that more seeds are needed."
        ),
    ),
    Question(
        name="equal-time",
        title="Which of my two configs is better at equal time?",
        method=(
            "A budget in minutes ends every run after that much training time, with the "
            "learning-rate schedule scaled to it:"
        ),
        steps=(
            Step(
                "python sweep.py config/run_laptop.py --eval_interval=0 "
                "--arms config/arch_gpt2.py,config/arch_llama.py --budget minutes=0.2 --seeds=3 "
                "--name=equal-time",
                (("Sweep ", "  Minimum"), ("Groups of ", "Report:")),
            ),
        ),
        reading=(
            "Replace the two files with your own. If other processes use the machine during the "
            "sweep, seconds are not compared, and a note says so. Widths are changed so that both "
            "have the same number of parameters, unless you pass `--match=none`."
        ),
    ),
    Question(
        name="context",
        title="Does a longer context help?",
        method=(
            "Restrict attention to the last 16 tokens and compare with all 64. Both arms read the "
            "same sequences and are validated on the same tokens:"
        ),
        steps=(
            Step(
                f"python sweep.py {FAST} --vary sliding_window=16 --seeds=3 --name=context",
                VERDICTS,
            ),
        ),
        reading="If the window is *worse*, the tokens beyond it help.",
    ),
    Question(
        name="moe",
        title="Is a mixture of experts better at equal active parameters?",
        method=(
            "By default, arms are matched in active parameters, those used per token, so the "
            "experts become narrower:"
        ),
        steps=(Step(f"python sweep.py {FAST} --vary ffn_type=moe --seeds=3 --name=moe", VERDICTS),),
        reading="The plan states total and active parameters; `--match=params` compares at equal "
        "memory instead.",
    ),
    Question(
        name="seeds",
        title="How many seeds do I need?",
        method=(
            "The plan of a sweep states the smallest difference that it detects with a power of "
            "80 %, in standard deviations between seeds. A dry run prints the plan and trains "
            "nothing:"
        ),
        steps=(
            Step(
                f"python sweep.py {FAST} --vary qk_norm=False --seeds=3 --name=seeds --dry_run",
                (("  2 arms", "  Time"),),
            ),
            Step(
                f"python sweep.py {FAST} --vary qk_norm=False --seeds=10 --name=seeds --dry_run",
                (("  2 arms", "  Time"),),
            ),
        ),
        reading=(
            "The comparison of any earlier sweep of the same model shows the standard deviation "
            "between seeds. Alternatively, `--until_sure` adds seeds until each verdict is "
            "conclusive."
        ),
    ),
    Question(
        name="size",
        title="Is the gain still there at twice the size?",
        method=(
            "In the README, the short convolution of this recipe is worth 0.17 nats. Repeat the "
            "comparison with `n_embd=184` in place of 128, which doubles the parameters:"
        ),
        steps=(
            Step(
                f"python sweep.py {FAST} --n_embd=184 --vary mixer=attention --seeds=3 --name=size",
                VERDICTS,
            ),
        ),
        reading=(
            "Compare the two intervals. `--ladder params=1M,2M,4M,8M` repeats a sweep at several "
            "sizes and tests for a trend ([sweeps.md](sweeps.md#several-sizes))."
        ),
    ),
    Question(
        name="cost",
        title="What does my architecture cost at 1.3B parameters on an H100?",
        method="A dry run computes FLOPs, memory, time and price without allocating anything:",
        steps=(
            Step(
                "python train.py config/arch_llama.py config/run_fineweb_1.3b.py "
                "--vocab_size=50304 --dry_run --device_name=H100 --workers=8 --price_per_hour=2.50"
            ),
        ),
        reading="Time is an estimate from FLOPs at the stated utilization, not a measurement.",
    ),
    Question(
        name="own-attention",
        title="How do I add my own attention and test it fairly?",
        method="Write one class in a file of your own and vary the key that selects it:",
        files={"my_attention.py": OWN_ATTENTION},
        steps=(
            Step(
                f"python sweep.py {FAST} --plugins=my_attention.py "
                "--vary mixer=short_conv+scaled_attention --seeds=3 --name=own-attention",
                VERDICTS,
            ),
        ),
        reading=(
            "If a component adds many parameters, the FFN is narrowed to compensate. "
            "[CONTRIBUTING.md](../CONTRIBUTING.md) explains what a component can define."
        ),
    ),
    Question(
        name="hugging-face",
        title="How do I continue from a Hugging Face checkpoint?",
        method=(
            "`--init_from` takes the folder of a supported model ([interop.md](interop.md)), such "
            "as one from `hf download`. Here, the first two commands create such a folder:"
        ),
        steps=(
            Step(
                "python train.py config/arch_llama.py config/run_laptop.py --max_iters=60 "
                "--warmup_iters=10 --run_name=first --sample_tokens=0",
                (("step 60", ""),),
            ),
            Step("python -m interop.huggingface export first model"),
            Step(
                "python train.py --init_from=model --dataset=shakespeare_char --max_iters=30 "
                "--learning_rate=1e-3 --run_name=continued --sample_tokens=0 --console=brief",
                (("architecture", "components"), ("step 10", "")),
            ),
        ),
        reading="The folder determines the architecture; the flags determine the training.",
    ),
    Question(
        name="refactoring",
        title="Did my refactoring change the results?",
        method=(
            "Save a report before and after the change and compare the two. To write a report, "
            "the script trains a small model twice and records checksums of losses, weights, "
            "code, data and config. Here, an added comment stands in for the refactoring:"
        ),
        steps=(
            Step(
                "python scripts/reproducibility_audit.py config/arch_llama.py --save=before.json",
                (("bit_identical", ""),),
            ),
            Step("echo '# tidier' >> components/attention.py"),
            Step(
                "python scripts/reproducibility_audit.py config/arch_llama.py --save=after.json",
                (("bit_identical", ""),),
            ),
            Step(
                "python scripts/reproducibility_audit.py --compare before.json after.json",
                (("source", "data"), ("losses", "")),
                status=1,
            ),
        ),
        reading=(
            "Only the checksum of the code (`source`) differs; losses, weights and optimizer state "
            "are the same to the last bit."
        ),
    ),
)


# Running the commands


@dataclasses.dataclass(frozen=True)
class Answer:
    """The output of the commands of a question.

    Attributes:
        outputs: The output of each command.
        seconds: Total duration of the commands.
        load: Fraction of the CPUs that other processes used in the meantime.
    """

    outputs: list[str]
    seconds: float
    load: float

    @classmethod
    def from_file(cls, path: Path) -> Answer:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")


def ask(question: Question, folder: Path) -> Answer:
    """Run the commands of a question in a copy of the project. Raises RunFailed if one fails."""
    for name, text in question.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    outputs, others, start = [], OtherLoad(), time.monotonic()
    for step in question.steps:
        print(f"$ {step.command}", flush=True)
        outputs.append(_output(step, folder))
    return Answer(outputs, time.monotonic() - start, others.share())


def _output(step: Step, folder: Path) -> str:
    """The output of a command, including errors."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["sh", "-c", step.command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    if done.returncode != step.status:
        raise RunFailed(f"{step.command} exited with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def clone_project(folder: Path) -> None:
    """Clone the last commit of the checkout, and copy the prepared dataset."""
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(folder)], check=True)
    for file in (PROJECT / DATASET).iterdir():
        shutil.copy2(file, folder / DATASET)


# The page


def shortened(output: str, show: Sequence[tuple[str, str]]) -> str:
    """The lines of an output that are shown, with "..." for omitted ones.

    Raises:
        UserError: If no line starts with one of the prefixes.
    """
    lines = output.rstrip().splitlines()
    if not show:
        return "\n".join(lines)
    kept: list[str] = []
    end = 0
    for first, last in show:
        start = _index(lines, first, end)
        kept += ["..."] if start > end else []
        end = _index(lines, last, start + 1) if last else len(lines)
        kept += _without_blank_end(lines[start:end])
    return "\n".join(kept + (["..."] if end < len(lines) else []))


def _index(lines: Sequence[str], text: str, after: int) -> int:
    for index in range(after, len(lines)):
        if lines[index].startswith(text):
            return index
    raise UserError(f"no line of the output begins with {text!r}; it has:\n" + "\n".join(lines))


def _without_blank_end(lines: Sequence[str]) -> list[str]:
    kept = list(lines)
    while kept and not kept[-1].strip():
        kept.pop()
    return kept


def section(question: Question, answer: Answer) -> Iterator[str]:
    """A question of the page with its answer."""
    yield f"## {question.title}\n"
    yield paragraph(question.method)
    for name, text in question.files.items():
        yield f"`{name}`:\n\n```python\n{text}```\n"
    for step, output in zip(question.steps, answer.outputs, strict=True):
        yield f"```sh\n{step.command}\n```\n"
        if output:
            yield f"```text\n{shortened(output, step.show)}\n```\n"
    yield paragraph(f"{question.reading} Run time: {format_duration(answer.seconds)}.")


def paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False) + "\n"


INTRODUCTION = (
    "Ten questions, each answered by a command that a laptop runs in at most a few minutes. The "
    "output is unedited; `...` stands for omitted lines. `python scripts/questions.py` runs the "
    "commands and writes this page. Most start from `{fast}`, a 0.4M-parameter character model "
    "that trains in seconds; replace it with your own config. The verdicts are about this model "
    "only."
)
MEASURED = "Measured with torch {torch} on {cores} cores ({device}), threads per run: {threads}."
SHARED = (
    "Other processes used {load:.0%} of the CPU time, so the commands took longer than they would "
    "alone."
)


def page(answers: Mapping[str, Answer], machine: Mapping[str, Any]) -> str:
    """The page.

    Args:
        answers: The answers by name of the question.
        machine: `cores`, `device`, `torch`, `threads` of a run, and `load`: the fraction of the
            CPUs that other processes used.
    """
    where = MEASURED + (f" {SHARED}" if machine["load"] >= BUSY else "")
    lines = ["# Recipes\n", paragraph(INTRODUCTION.format(fast=FAST))]
    lines.append(paragraph(where.format(**machine)))
    for question in QUESTIONS:
        lines += section(question, answers[question.name])
    return "\n".join(lines)


# The command


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--only", metavar="NAME", help="ask one question, and print the answer")
    flags.add_argument("--page", type=Path, default=PAGE, help="default: docs/recipes.md")
    return flags


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    named = {question.name: question for question in QUESTIONS}
    if args.only is not None and args.only not in named:
        raise UserError(unknown_name("question", args.only, named))
    asked = [named[args.only]] if args.only else list(QUESTIONS)
    project = FOLDER / "project"
    if not project.exists():
        clone_project(project)
    answers = {question.name: kept_answer(question, project) for question in asked}
    if args.only:
        print("\n".join(section(asked[0], answers[args.only])))
        return PASSED
    args.page.write_text(page(answers, machine_of(answers)), encoding="utf-8")
    print(f"written: {args.page}")
    return PASSED


def kept_answer(question: Question, project: Path) -> Answer:
    """The saved answer of an earlier call, or a new one."""
    file = FOLDER / f"{question.name}.json"
    if not file.exists():
        ask(question, project).write(file)
    return Answer.from_file(file)


def machine_of(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """The machine on which the answers were measured."""
    return {
        "cores": os.cpu_count(),
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "load": fmean(answer.load for answer in answers.values()),
    }


if __name__ == "__main__":
    run_script(main)
