"""The results file of the suite, and the tables of docs/performance.md, made from those files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.entry import Number, Outcome
from errors import UserError
from scripts.runs import PROJECT

SCHEMA_VERSION = 1
RESULTS = PROJECT / "benchmarks" / "results"
DOCUMENT = PROJECT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks/gpu_suite.sh: begin -->", "<!-- benchmarks/gpu_suite.sh: end -->"
NOTHING_YET = "No GPU has been measured yet."

Results = dict[str, Any]


def results_of(
    outcomes: Sequence[Outcome],
    environment: Mapping[str, Any],
    *,
    finished: str,
    command: Sequence[str],
    tiny: bool,
    nanogpt_commit: str | None,
) -> Results:
    """The content of a results file.

    Args:
        environment: See `training.hardware.environment`: device, versions, commit, changes.
        finished: End time in UTC, ISO 8601.
        command: The flags of the suite.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "finished": finished,
        "command": list(command),
        "tiny": tiny,
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "environment": dict(environment),
        "nanogpt_commit": nanogpt_commit,
        "entries": [outcome.to_dict(tiny=tiny) for outcome in outcomes],
    }


def write_results(results: Results, folder: Path) -> Path:
    """Write `<device>-<date>.json`; if it exists, append -2 and so on to the name."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", results["environment"]["device"].lower()).strip("-")
    stem = f"{device}-{results['finished'][:10]}"
    path, count = folder / f"{stem}.json", 1
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def read_results(folder: Path) -> list[Results]:
    """The results of full-size runs in a folder, newest first.

    Raises:
        UserError: If a file there contains no results, or has another version.
    """
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    full = [results for results in found if not results["tiny"]]
    return sorted(full, key=lambda results: results["finished"], reverse=True)


def _read(path: Path) -> Results:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        version, _ = results["schema_version"], results["tiny"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} has no results of benchmarks/gpu_suite.sh ({error!r}).") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path} has version {version}, but this code reads {SCHEMA_VERSION}.")
    return results


def update_document(document: Path, results: Sequence[Results]) -> None:
    """Replace the text between the markers.

    Raises:
        UserError: If the markers are missing.
    """
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{document} needs the lines {BEGIN} and {END}, with the table in between.")
    document.write_text(f"{before}{block(results)}{after}", encoding="utf-8")


def block(results: Sequence[Results]) -> str:
    """The text of docs/performance.md from the first marker to the last."""
    parts = [section(each) for each in results] or [NOTHING_YET]
    return "\n\n".join([BEGIN, *parts, END])


def section(results: Results) -> str:
    """A heading, the environment, and the table, in Markdown."""
    machine = results["environment"]
    commit = (machine["commit"] or "unknown")[:12] + (" with changes" if machine["dirty"] else "")
    facts = [f"torch {machine['torch']}", f"CUDA {machine['cuda']}", f"commit {commit}"]
    if results["nanogpt_commit"]:
        facts.append(f"nanoGPT {results['nanogpt_commit'][:12]}")
    facts.append(f"{results['seconds']:.0f} s in all")
    heading = f"### {machine['device']}, {results['finished'][:10]}"
    return "\n".join([heading, "", ", ".join(facts) + ".", "", *table(results)])


def table(results: Results) -> Iterator[str]:
    """Yield the lines of a Markdown table with a row for each entry."""
    yield "| What | Status | Measured | Goal | Seconds |"
    yield "| --- | --- | --- | --- | ---: |"
    for entry in results["entries"]:
        cells = (entry["name"], entry["status"], _measured(entry), _goals(entry))
        escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
        yield f"| {' | '.join(escaped)} | {entry['seconds']:.0f} |"


def _measured(entry: Mapping[str, Any]) -> str:
    numbers = (
        f"{name} {written(value)}" for name, value in entry["numbers"].items() if name != "seconds"
    )
    return "; ".join(part for part in (*numbers, entry["reason"], entry["note"]) if part)


def _goals(entry: Mapping[str, Any]) -> str:
    return "; ".join(
        goal["goal"] if goal["applied"] else f"{goal['goal']} (not applied)"
        for goal in entry["goals"]
    )


def written(value: Number) -> str:
    """A number with as many digits as readers need."""
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
