"""A pytest plugin that writes which values the options of the models had in each test.

RECORDED_OPTIONS names the file: test case, as `unit/test_x.py::test_y[...]` -> option -> values.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from model_config import ModelArchitectureConfig

_found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
_set_up = ModelArchitectureConfig._set_up


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    values = _found[item.nodeid.removeprefix("tests/")]

    def recorded(config: ModelArchitectureConfig, *given: Any) -> None:
        _set_up(config, *given)
        for layer in config.kinds:
            for key, value in layer.values().items():
                values[key].add(repr(value))

    ModelArchitectureConfig._set_up = recorded
    try:
        return (yield)
    finally:
        ModelArchitectureConfig._set_up = _set_up


def pytest_sessionfinish() -> None:
    text = json.dumps(
        {test: {k: sorted(v) for k, v in own.items()} for test, own in _found.items()}
    )
    Path(os.environ["RECORDED_OPTIONS"]).write_text(text, encoding="utf-8")
