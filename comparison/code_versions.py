"""Which code made the runs of a group, as far as their logs say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from comparison.groups import Group
from comparison.runs import LoggedRun

_MOST_VALUES = 4  # that a note lists


def code_note(group: Group) -> str | None:
    """A sentence where the counted runs of a group, or the starts of one of them, were made by
    different code; else None.

    The digests of the project's source decide; commits do where a run does not have one.
    """
    found = [*_sources(group.counted), *_plugins(group.counted)]
    if not found:
        return None
    return f"Runs of {group.name} were made by different code: {'; '.join(found)}."


def _sources(runs: Iterable[LoggedRun]) -> Iterator[str]:
    starts = [start for run in runs for start in (run.environments or (run.environment,))]
    digests = [_short(start.get("source_sha256")) for start in starts]
    if len(set(filter(None, digests))) > 1:
        yield f"source {_listed(digests)}"
    elif None in digests:
        commits = [_commit(start) for start in starts]
        if len(set(filter(None, commits))) > 1:
            yield f"commit {_listed(commits)}"


def _short(digest: Any) -> str | None:
    """Enough of a digest to tell it from another; None where there is none."""
    return str(digest)[:12] if digest else None


def _commit(environment: dict[str, Any]) -> str | None:
    commit = _short(environment.get("commit"))
    return f"{commit} with changes" if commit and environment.get("dirty") else commit


def _plugins(runs: Iterable[LoggedRun]) -> Iterator[str]:
    logged = [run.plugins for run in runs if run.plugins is not None]
    names = sorted({name for plugins in logged for name in plugins})
    differing = [
        name for name in names if len({json.dumps(plugins.get(name)) for plugins in logged}) > 1
    ]
    if differing:
        yield f"plugins differ in {_listed(differing)}"


def _listed(values: Iterable[Any]) -> str:
    texts = list(dict.fromkeys(str(value) for value in values if value is not None))
    more = len(texts) - _MOST_VALUES
    return ", ".join(texts[:_MOST_VALUES]) + (f" and {more} more" if more > 0 else "")
