"""What may be asked of a sweep, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest

from errors import ConfigError
from experiment.budgets import Budget
from experiment.request import Request, read_lists

NORMS = {"normalization": ("layernorm", "rmsnorm")}


def request(**asked: Any) -> Request:
    return Request(**{"files": (), "flags": {}, "vary": NORMS, **asked})


def refusal(**asked: Any) -> str:
    with pytest.raises(ConfigError) as error:
        request(**asked)
    return str(error.value)


def test_lists() -> None:
    assert read_lists("--vary", ["a=1,2", "b=x"]) == {"a": ("1", "2"), "b": ("x",)}
    assert read_lists("--vary", ["a=1,,2,"]) == {"a": ("1", "2")}


@pytest.mark.parametrize("text", ["a", "a=", "a=,", ""])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read --tune .*; write --tune key=value,value"):
        read_lists("--tune", [text])


def test_a_key_comes_once() -> None:
    with pytest.raises(ValueError, match="--vary bias is given more than once"):
        read_lists("--vary", ["bias=True", "bias=False"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"vary": {"normalisation": ("rmsnorm",)}}, "did you mean 'normalization'?"),
        ({"tune": {"lerning_rate": ("1",)}}, "--tune lerning_rate: unknown key"),
        ({"vary": {"seed": ("1", "2")}}, "--vary seed: use --seeds=N."),
        ({"vary": {"data_seed": ("1",)}}, "--vary data_seed: use --seeds=N."),
        ({"vary": {"max_iters": ("10",)}}, "--vary max_iters: use --budget tokens=N"),
        ({"vary": {"max_minutes": ("1",)}}, "--vary max_minutes: use --budget minutes=N"),
        ({"vary": {"run_name": ("a",)}}, "--name names the sweep."),
        ({"vary": {"resume": ("auto",)}}, "the same command resumes a sweep."),
        ({"vary": {"sequence_length": ("8",)}}, "it must be the same for all arms"),
        ({"vary": {"dataset": ("a",)}}, "it must be the same for all arms"),
        ({"tune": {"batch_size": ("8",)}}, "it must be the same for all arms"),
        ({"tune": {"n_embd": ("8",)}}, "it must be the same for all arms"),
        ({"tune": {"learning_rate": ("1", "fast")}}, "--tune: learning_rate takes float"),
        ({"tune": {"learning_rate": ("1", "-1")}}, "--tune: learning_rate=-1.0 must be above 0"),
        ({"vary": {"bias": ("False", "no")}}, "--vary: bias takes True or False"),
        ({"vary": {"bias": ("True", "True")}}, "bias=True,True lists a value twice"),
        ({"tune": {"learning_rate": ("1e-3", "0.001")}}, "lists a value twice; list each once."),
        (
            {"tune": {"learning_rate": ("1", "2")}, "flags": {"learning_rate": "1"}},
            "--learning_rate sets what --tune is to choose; drop one.",
        ),
        (
            {"budget": Budget("tokens", 1e6), "flags": {"max_iters": "9"}},
            "--max_iters sets what --budget is to choose; drop one.",
        ),
        (
            {"budget": Budget("tokens", 1e6), "flags": {"max_minutes": "9"}},
            "--max_minutes sets what --budget is to choose; drop one.",
        ),
        ({"flags": {"run_name": "x"}}, "--run_name is no key of a sweep"),
        ({"flags": {"resume": "auto"}}, "--resume is no key of a sweep"),
        (
            {"vary": {"learning_rate": ("1", "2")}, "tune": {"learning_rate": ("3",)}},
            "learning_rate is both in --vary and in --tune; drop one.",
        ),
        (
            {"arms": ("a.py",), "design": "factorial", "vary": {**NORMS, "bias": ("False",)}},
            "--arms are no combination of factors",
        ),
        ({"design": "factorial"}, "needs at least 2 keys in --vary, not 1"),
        ({"vary": {}}, "nothing to compare: give --vary key=value,... or --arms FILES."),
        ({"name": "../elsewhere"}, "--name='../elsewhere' must be one folder's name"),
        ({"name": ""}, "--name='' must be one folder's name"),
    ],
)
def test_refusals(asked: dict[str, Any], message: str) -> None:
    assert message in refusal(**asked)


def test_all_problems_are_told_at_once() -> None:
    told = refusal(vary={"seed": ("1",)}, tune={"dataset": ("x",)}, name=".")
    assert told.startswith("3 config errors:")


def test_keys_of_the_recipe_may_be_varied_and_tuned() -> None:
    asked = request(vary={"lr_schedule": ("wsd",)}, tune={"weight_decay": ("0", "0.1")})
    assert list(asked.tune) == ["weight_decay"]
