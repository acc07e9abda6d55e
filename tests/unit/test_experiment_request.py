"""What may be asked of a sweep, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest

import sweep
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
    with pytest.raises(ValueError, match="cannot parse --tune .*; write --tune key=value,value"):
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
            "--learning_rate conflicts with --tune, which sets that key; drop one.",
        ),
        (
            {"budget": Budget("tokens", 1e6), "flags": {"max_iters": "9"}},
            "--max_iters conflicts with --budget, which sets that key; drop one.",
        ),
        (
            {"budget": Budget("tokens", 1e6), "flags": {"max_minutes": "9"}},
            "--max_minutes conflicts with --budget, which sets that key; drop one.",
        ),
        ({"flags": {"run_name": "x"}}, "--run_name is not available in a sweep"),
        ({"flags": {"resume": "auto"}}, "--resume is not available in a sweep"),
        (
            {"vary": {"learning_rate": ("1", "2")}, "tune": {"learning_rate": ("3",)}},
            "learning_rate is both in --vary and in --tune; drop one.",
        ),
        (
            {"arms": ("a.py",), "design": "factorial", "vary": {**NORMS, "bias": ("False",)}},
            "--arms cannot be used with --design=factorial",
        ),
        ({"design": "factorial"}, "needs at least 2 keys in --vary, not 1"),
        ({"vary": {}}, "nothing to compare: give --vary key=value,... or --arms FILES."),
        ({"name": "../elsewhere"}, "--name='../elsewhere' must be a single folder name"),
        ({"name": ""}, "--name='' must be a single folder name"),
        ({"name": "a\x1b[31m"}, "without control characters"),
        ({"name": "x" * 201}, "of at most 200 bytes"),
        ({"seeds": 0}, "--seeds=0 must be from 1 to 10,000."),
        ({"seeds": 10**9}, "--seeds=1000000000 must be from 1 to 10,000."),
        ({"seeds": 10**4000}, "--seeds=1000000000"),
        ({"tune_seeds": 10**9}, "--tune_seeds=1000000000 must be from 1 to 10,000."),
        (
            {"vary": {"n_layer": tuple(map(str, range(1, 102)))}, "seeds": 1000},
            "101 arms with 1,000 seeds make 101,000 runs; a sweep has at most 10,000.",
        ),
        (
            {"tune": {"weight_decay": tuple(map(str, range(70))), "beta1": ("0.8", "0.9")}}
            | {"tune_seeds": 40},
            "2 arms with 5 seeds and 140 trials of 40 make 11,210 runs",
        ),
        (
            {"vary": {f"{key}": ("1", "2") for key in ("n_layer", "n_head", "n_embd", "bias")}}
            | {"design": "factorial", "seeds": 1000},
            "16 arms with 1,000 seeds make 16,000 runs",
        ),
    ],
)
def test_refusals(asked: dict[str, Any], message: str) -> None:
    assert message in refusal(**asked)


def test_all_problems_are_told_at_once() -> None:
    told = refusal(vary={"seed": ("1",)}, tune={"dataset": ("x",)}, name=".")
    assert told.startswith("3 config errors")


def command_line_refusal(*argv: str) -> str:
    options, rest = sweep.parser().parse_known_args(argv)
    with pytest.raises(ConfigError) as error:
        sweep.read_request(options, rest)
    return str(error.value)


def test_all_problems_of_a_command_line_are_told_at_once() -> None:
    told = command_line_refusal(
        *("--vary", "bias=True,True", "--seeds=1000000000", "--workers=0", "--n_leyer=2"),
        "--print_config",
    )
    assert told.startswith("5 config errors")
    told = command_line_refusal("--vary", "bias", "--tune", "x", "--budget", "tokens=many")
    assert told.startswith("3 config errors")
    assert "--workers=10" in command_line_refusal("--vary", "bias=True", f"--workers={10**30}")


def test_keys_of_the_recipe_may_be_varied_and_tuned() -> None:
    asked = request(vary={"lr_schedule": ("wsd",)}, tune={"weight_decay": ("0", "0.1")})
    assert list(asked.tune) == ["weight_decay"]
