"""Findings in machine-readable form: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Mapping
from statistics import fmean
from typing import Any

from comparison.findings import Findings, GroupResult
from comparison.formatting import ACTIVE, COST, REACHED, assignments
from comparison.groups import Group
from comparison.new_text import NewText
from comparison.readings import Reading
from comparison.runs import LoggedRun
from comparison.verdict_lines import verdict_line, verdict_notes
from inference.estimates import Estimate
from inference.quantiles import ALPHA
from inference.samples import Sample, deviation
from inference.verdicts import Verdict
from training_logger import json_safe

DOCUMENT_VERSION = 2
"""Version of the JSON document; increased by changes that break its readers."""


# Numbers of a group


def _summary(key: str) -> Callable[[LoggedRun], float | None]:
    return lambda run: run.summary.get(key)


def numbers(group: Group) -> dict[str, float | None]:
    """The results and costs of a group: means over seeds, but the largest memory."""
    return {
        "parameters": group.architecture["parameters"],
        ACTIVE: group.architecture.get("active_parameters"),
        "flops_per_token": group.architecture["flops_per_token"],
        "attention_ffn_ratio": group.architecture.get("attention_ffn_ratio"),
        "loss": group.loss,
        "sd": group.deviation,
        "bits_per_byte": group.mean(_summary("final_val_bits_per_byte")),
        "tokens_per_second": group.mean(_summary("median_tokens_per_second")),
        "mfu_percent": group.mean(_summary("median_mfu_percent")),
        "peak_memory_bytes": group.peak_memory,
        "seconds": group.mean(lambda run: run.seconds),
        "total_tokens": group.mean(lambda run: run.tokens),
        "total_flops": group.mean(lambda run: run.flops),
    }


def costs(findings: Findings) -> list[str]:
    """The cost quantities to show: those of COST that are known and informative."""
    sparse = any(row.group.is_sparse for row in findings.rows)
    return [key for key in COST if sparse or key != ACTIVE]


# JSON


def document(findings: Findings) -> dict[str, Any]:
    """Findings as a JSON object; losses in nats per token, simultaneous 95 % intervals."""
    design = findings.design
    return json_safe(
        {
            "document_version": DOCUMENT_VERSION,
            "baseline": findings.baseline.group.name,
            "confidence": 1 - ALPHA,
            "family": findings.family,
            "declared_arms": design.arms,
            "declared_seeds": design.seeds,
            "noise_floor": findings.noise_floor,
            "margin": design.margin,
            "groups": _group_objects(findings),
            "effects": [
                {
                    "changes": effect.changes,
                    "effect": effect.contrast.estimate.value,
                    **_estimate_object(
                        effect.contrast.estimate,
                        effect.contrast.interval,
                        effect.contrast.p_adjusted,
                    ),
                }
                for effect in findings.effects
            ],
            "notes": findings.notes,
        }
    )


def _group_objects(findings: Findings) -> list[dict[str, Any]]:
    shown = (*REACHED, *costs(findings))
    return [_group_object(row, shown) for row in findings.rows]


def _group_object(row: GroupResult, shown: Collection[str]) -> dict[str, Any]:
    group = row.group
    return {
        "name": group.name,
        "architecture": group.architecture["name"],
        "changes": row.changes,
        "n": group.n,
        "seeds": [run.seeds for run in group.counted],
        "runs": [run.folder for run in group.counted],
        "failures": group.diverged,
        "excluded": group.left_out,
        "set_apart": row.set_apart,
        **{key: value for key, value in numbers(group).items() if key in shown},
        **_verdict_object(row.verdict, row.terms, row.new_text),
        "new_text": row.new_text and _new_text_object(row.new_text),
        "terms": row.terms,
        "caveats": row.caveats,
        "pareto": row.pareto,
        "at_equal": {
            axis: _reading_object(reading, row.terms) for axis, reading in row.at_equal.items()
        },
        "speedup": {axis: factor_object(log) for axis, log in row.speedups.items()},
    }


def _new_text_object(found: NewText) -> dict[str, Any]:
    return {
        "interval": found.interval,
        "holds": found.holds,
        "blocks": found.blocks,
        "df": found.df,
    }


def sample_object(losses: Sample) -> dict[str, Any]:
    values = list(losses.values())
    return {
        "n": len(values),
        "loss": fmean(values) if values else None,
        "sd": deviation(values),
    }


def _reading_object(reading: Reading, terms: str) -> dict[str, Any]:
    judged = _verdict_object(reading.verdict or Verdict(""), terms)
    if reading.verdict is None:
        judged |= {"verdict": None, "words": None, "difference": reading.difference}
    return {
        "budget": reading.budget,
        **sample_object(reading.losses),
        **judged,
        "descriptive": reading.descriptive or None,
    }


def _verdict_object(
    verdict: Verdict, terms: str, new_text: NewText | None = None
) -> dict[str, Any]:
    found = verdict.difference
    return {
        "verdict": verdict.word,
        "words": verdict_line(verdict, terms, new_text),
        "notes": list(verdict_notes(verdict)),
        "difference": found and found.value,
        "mean": found and found.mean,
        "baseline_mean": found and found.baseline_mean,
        "farthest": verdict.farthest,
        **_estimate_object(found, verdict.interval, verdict.p_adjusted),
        "seeds_needed": verdict.seeds_needed,
        "detectable": verdict.detectable,
    }


def _estimate_object(
    estimate: Estimate | None,
    interval: tuple[float, float] | None,
    p_adjusted: float | None,
) -> dict[str, Any]:
    known = estimate is not None
    return {
        "interval": interval,
        "p_value": estimate.p_value() if known else None,
        "p_adjusted": p_adjusted,
        "test": estimate.test if known else None,
        "df": estimate.df if known else None,
        "paired_seeds": estimate.n if known and estimate.paired else None,
    }


def factor_object(log: Estimate | None) -> dict[str, Any]:
    """A factor and its interval, from an estimate of its logarithm."""
    if log is None:
        return {"factor": None, "interval": None, "n": 0}
    half = log.half_width(ALPHA)
    low, high = log.value - half, log.value + half
    return {"factor": _exp(log.value), "interval": [_exp(low), _exp(high)], "n": log.n}


def _exp(log: float) -> float:
    return math.exp(log) if log < 700 else math.inf


def to_json(findings: Findings) -> str:
    return json.dumps(document(findings), indent=1, allow_nan=False)


# CSV

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which spreadsheets recognize a formula."""


def to_csv(findings: Findings) -> str:
    """One line per group; objects are flattened into columns, lists are joined by semicolons.

    Text that a spreadsheet would interpret as a formula is prefixed with `'`.
    """
    lines = [_flat(group) for group in _group_objects(findings)]
    columns = dict.fromkeys(column for line in lines for column in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _quoted(cell) for key, cell in line.items()} for line in lines)
    return text.getvalue().removesuffix("\n")


def _quoted(cell: Any) -> Any:
    """Escape a cell that a spreadsheet would run as a formula; numbers are unchanged."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = prefix + key
        if key == "changes":
            flat[name] = assignments(item)
        elif key == "interval":
            low, high = item or (None, None)
            flat |= {f"{name}_low": low, f"{name}_high": high}
        elif isinstance(item, Mapping):
            flat |= _flat(item, f"{name}_")
        elif isinstance(item, list | tuple):
            flat[name] = "; ".join(
                "/".join(map(str, x)) if isinstance(x, tuple) else x for x in item
            )
        else:
            flat[name] = item
    return flat
