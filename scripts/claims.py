"""Simulated comparisons without a true difference that are prone to false verdicts, from logs.

Each case simulates the logs of an experiment's runs and counts how often the comparison reports a
difference: `better` or `worse`, in the table of final losses or of losses at an
equal budget. `calibration` writes the rates to docs/calibration.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from comparison.design import Design
from comparison.findings import Findings, compare
from comparison.runs import LoggedRun
from inference.verdicts import BETTER, WORSE

SD = 0.01
"""Standard deviation of a run, nats."""

TOKENS_PER_STEP, FLOPS_PER_TOKEN = 1024, 6_000_000


@dataclasses.dataclass(frozen=True)
class Made:
    """The properties shared by the runs of an arm.

    Attributes:
        steps: Number of steps of each run.
        every: Steps between evaluations.
        source: The digest of the code.
        rate: The learning rate.
        sweep: The folder of its sweep; None if it has none.
        shift: Added to every loss.
    """

    name: str
    steps: int = 2000
    every: int = 250
    source: str = "c0de"
    rate: float = 1e-3
    sweep: str | None = None
    shift: float = 0.0


def logged(made: Made, seed: int, luck: float) -> LoggedRun:
    """A run whose loss falls as a power law of its tokens, and further as the rate decays."""
    steps = range(0, made.steps + 1, made.every)
    return LoggedRun(
        path=Path("out") / f"{made.name}-{seed}" / "run.json",
        run_name=f"{made.name}-{seed}",
        status="completed",
        start_time=f"2026-01-01T{made.source}{seed:04}",
        config={
            "activation": made.name,
            "seed": seed,
            "data_seed": seed,
            "max_iters": made.steps,
            "eval_interval": made.every,
            "learning_rate": made.rate,
        },
        architecture={
            "name": made.name,
            "parameters": 1_000_000,
            "flops_per_token": FLOPS_PER_TOKEN,
        },
        environment={"device": "a CPU", "source_sha256": made.source},
        data={"fingerprint": "text"},
        eval_steps=[
            {
                "iter": step,
                "val_loss": _loss(step, made.steps) + luck + made.shift if step else 4.0,
                "tokens_seen": step * TOKENS_PER_STEP,
            }
            for step in steps
        ],
        summary={},
        arm=made.name if made.sweep else None,
        sweep=made.sweep,
    )


def _loss(step: int, steps: int) -> float:
    """A power law plus 0.1 nats that disappear as the learning rate decays."""
    return 1.5 + 2 * (step / 100) ** -0.3 + 0.1 * (1 - step / steps)


def runs_of(made: Made, lucks: Sequence[float], first: int = 1) -> list[LoggedRun]:
    return [logged(made, seed, luck) for seed, luck in enumerate(lucks, start=first)]


Case = Callable[[np.random.Generator, int], Findings]
"""Simulates an experiment with a number of seeds and returns its findings."""


def two_lengths(rng: np.random.Generator, n: int) -> Findings:
    base = runs_of(Made("gelu", steps=2000), _lucks(rng, n))
    return compare([*base, *runs_of(Made("silu", steps=4000), _lucks(rng, n))])


def two_intervals(rng: np.random.Generator, n: int) -> Findings:
    base = runs_of(Made("gelu", every=250), _lucks(rng, n))
    other = runs_of(Made("silu", every=500), _lucks(rng, n))
    short = runs_of(Made("tanh", steps=300, every=100), _lucks(rng, n))
    short = [dataclasses.replace(run, start_time="2026-02-01") for run in short]
    findings = compare([*base, *other, *short])
    rows = tuple(row for row in findings.rows if row.group.architecture["name"] != "tanh")
    return dataclasses.replace(findings, rows=rows)


def edited_code(rng: np.random.Generator, n: int) -> Findings:
    """Half of the seeds of both arms ran with code that changed every loss by 3 sd; only claims
    that do not name the code as a difference count."""
    half = n // 2
    runs = []
    for name in ("gelu", "silu"):
        old, new = Made(name, source="01d"), Made(name, source="2new", shift=3 * SD)
        lucks = _lucks(rng, n)
        runs += [*runs_of(old, lucks[:half]), *runs_of(new, lucks[half:], first=half + 1)]
    findings = compare(runs)
    named = tuple(row for row in findings.rows if "source code" not in " ".join(row.caveats))
    return dataclasses.replace(findings, rows=named)


def foreign_sweep(rng: np.random.Generator, n: int) -> Findings:
    """An arm of a sweep gained 3 sd by tuning its rate and is compared with an untuned run."""
    base = runs_of(Made("gelu"), _lucks(rng, n))
    tuned = Made("silu", rate=3e-3, sweep="out/sweeps/tuned", shift=-3 * SD)
    design = Design(studied={"out/sweeps/tuned": ("learning_rate",)})
    return compare([*base, *runs_of(tuned, _lucks(rng, n))], design=design)


def one_config_twice(rng: np.random.Generator, n: int) -> Findings:
    base = runs_of(Made("gelu"), _lucks(rng, n))
    return compare([*base, *runs_of(Made("the same"), _lucks(rng, n))])


def _lucks(rng: np.random.Generator, n: int) -> list[float]:
    return list(rng.normal(0, SD, n))


CASES: dict[str, Case] = {
    "max_iters 2000 vs. 4000, at equal tokens": two_lengths,
    "eval_interval 250 vs. 500, with a short arm": two_intervals,
    "half of the seeds on edited code": edited_code,
    "a sweep with a tuned learning rate vs. a run from outside": foreign_sweep,
    "one config under two names": one_config_twice,
}


def claimed(case: Case, n: int, trials: int) -> float:
    """The rate at which a difference is claimed."""
    rng = np.random.default_rng([5, n])
    return sum(_claims(case(rng, n)) for _ in range(trials)) / trials


def _claims(findings: Findings) -> bool:
    verdicts = [row.verdict for row in findings.rows]
    verdicts += [
        reading.verdict
        for row in findings.rows
        for reading in row.at_equal.values()
        if reading.verdict and not reading.final
    ]
    return any(verdict.word in (BETTER, WORSE) for verdict in verdicts)
