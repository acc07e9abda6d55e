"""A short description of the methods of a comparison, for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comparison.findings import Findings
from comparison.formatting import format_budget
from inference.estimates import Estimate
from inference.quantiles import ALPHA

Line = tuple[str, str]
"""A term and its description."""


_SIZES = {
    "active_params": "equal active parameters per token, within 0.5 %",
    "params": "equal parameters, within 0.5 %",
    "flops": "equal FLOPs per token, within 0.5 %",
    "none": "not matched",
}


def methods(findings: Findings) -> Iterator[Line]:
    """Yield budget, sizes, tuning, seeds, test and command, as far as known."""
    design, base = findings.design, findings.baseline.group
    declared = design.declared
    if declared.budget:
        yield "Budget", f"{declared.budget} for every run"
    elif base.counted:
        tokens = format_budget("tokens", base.counted[0].tokens)
        yield "Budget", f"{tokens} for each run of the baseline"
    if declared.match:
        yield "Sizes", _SIZES.get(declared.match, declared.match)
    yield "Tuning", _tuning(findings)
    yield "Seeds", _seeds(findings)
    if _estimates(findings):
        yield "Test", _test(findings)
    if declared.command:
        yield "Command", declared.command


def _estimates(findings: Findings) -> list[Estimate]:
    found = (row.verdict.difference for row in findings.rows)
    return [estimate for estimate in found if estimate is not None]


def _test(findings: Findings) -> str:
    names = ", ".join(sorted({estimate.test for estimate in _estimates(findings)}))
    arms = f"{findings.family} {'pair' if findings.design.all_pairs else 'arm'}"
    arms += "s" * (findings.family > 1)
    if findings.design.undeclared_looks:
        kind, correction = "confidence sequences", "union bound; seeds added after a verdict"
    else:
        kind, correction = "intervals", "Sidak"
    level = f"simultaneous {100 * (1 - ALPHA):.0f} % {kind} for {arms} ({correction})"
    return f"{names}; {level}; equal: within {findings.design.margin:g} nats"


def _tuning(findings: Findings) -> str:
    curves = findings.design.declared.curves
    if not curves:
        if any(findings.design.allowances.values()):
            return "every arm was trained with the values of its best trial"
        tuned = ", ".join(findings.design.tuned)
        return f"{tuned}, outside this comparison" if tuned else "none: all arms share one recipe"
    keys = ", ".join(sorted({curve.key for curve in curves}))
    tried = max(len(curve.tried) for curve in curves)
    return f"{keys}: {tried} values per arm, final runs at the fitted optimum"


def _seeds(findings: Findings) -> str:
    design = findings.design
    if design.schedule:
        looks = ", ".join(str(look.n) for look in design.schedule)
        number = f"sequential testing with looks at {looks}"
    else:
        number = f"{design.seeds} declared" if design.seeds else "not declared before the runs"
    return "; ".join([number, *_pairing(_estimates(findings))])


def _pairing(estimates: Sequence[Estimate]) -> Iterator[str]:
    paired = [estimate.paired for estimate in estimates]
    if any(paired):
        yield "paired by seed and data order"
    if not all(paired):
        yield "unpaired for arms that share fewer than two seeds"
