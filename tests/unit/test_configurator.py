"""Config files and flags: what they mean, and what is said when they mean nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest

import configurator
import train
import user_files
from cli import run_cli
from components.norms import NORMS
from configurator import (
    NANOGPT_KEYS,
    key_table,
    load,
    read,
    resolve,
    settings_from_dict,
)
from errors import KEY_SYNONYMS, VALUE_SYNONYMS, ConfigError, nearest
from interop.starting_model import new_settings
from model_config import ModelArchitectureConfig
from model_keys import REPLACED, removed_key_message
from model_presets import PRESETS
from options import KEYS, Role
from tests.parametrized import one_in
from training_components import DTYPES
from training_config import DEVICES
from user_files import CONFIG_FOLDER, run_plugins

ROOT = CONFIG_FOLDER.parent

PART = '''
from torch import nn
from components.norms import NORMS

@NORMS.register("doubling", label="Dbl")
class Doubling(nn.Module):
    """Twice the input."""

    def __init__(self, dim, config):
        super().__init__()

    def forward(self, x):
        return 2 * x
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file beside which the test runs; its path relative to there."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "x.py") -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return write_file


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(argv)
    return [problem.message for problem in caught.value.problems]


# What wins


def test_with_no_arguments_every_key_has_a_value():
    settings = load([])
    assert settings.arch_preset == "legacy"
    used = settings.to_dict()
    of_parts = {key for key in key_table() if KEYS.owners(key) and key not in used}
    assert set(used) == set(settings.origins) == set(key_table()) - of_parts
    assert {"rope_theta", "leaky_relu_slope", "wsd_decay_fraction"} < of_parts
    assert settings.explicit == frozenset()


def test_later_wins(write):
    first = write("arch_preset = 'llama'\nn_layer = 3\nmax_iters = 30\nbatch_size = 3", "a.py")
    second = write("n_layer = 4\nmax_iters = 40\n", "b.py")
    settings = load([first, second, "--n_layer=5"])
    assert settings.model.n_layer == 5
    assert settings.training.max_iters == 40
    assert settings.training.batch_size == 3
    assert settings.model.normalization == "rmsnorm"
    assert settings.model.n_head == 12
    expected = {
        "arch_preset": "a.py:1",
        "n_layer": "--n_layer",
        "max_iters": "b.py:2",
        "batch_size": "a.py:4",
        "normalization": "preset llama",
        "n_head": "default",
        "head_dim": "derived",
        "lr_decay_iters": "derived",
    }
    assert {key: settings.origins[key] for key in expected} == expected
    assert settings.config_files == ("a.py", "b.py")
    assert settings.explicit == {"arch_preset", "n_layer", "max_iters", "batch_size"}


def test_a_file_wins_over_a_preset_that_a_flag_names(write):
    path = write("arch_preset = 'gpt2'\nposition_encoding = 'alibi'")
    settings = load([path, "--arch_preset=llama"])
    assert settings.arch_preset == "llama"
    assert settings.model.position_encoding == "alibi"
    assert settings.model.ffn_type == "swiglu"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_what_from_preset_makes(name):
    settings = load([f"--arch_preset={name}"])
    assert settings.model == ModelArchitectureConfig.from_preset(name)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "run"),
        (["config/arch_llama.py", "config/run_laptop.py"], "llama"),
        (["config/run_shakespeare_fast_cpu.py"], "run_shakespeare_fast_cpu"),
        (["config/run_laptop.py", "--arch_preset=legacy"], "legacy"),
    ],
)
def test_short_names(flags, name):
    assert load(flags).short_name == name


def test_flags_change_parts_of_a_preset():
    settings = load(["--arch_preset=gpt2", "--position_encoding=rope", "--normalization=rmsnorm"])
    assert settings.model.architecture_name.startswith("12L-12H-768D-RoPE-RMS-GELU-PreNorm")


def test_sizes_are_derived_after_everything_is_merged(write):
    path = write("arch_preset = 'llama'\nn_embd = 384")
    settings = load([path, "--n_head=6"])
    assert (settings.model.head_dim, settings.model.ffn_hidden) == (64, 1024)


def test_a_value_keeps_what_follows_its_first_equals_sign():
    assert load(["--run_name=a=b"]).training.run_name == "a=b"


def test_an_int_becomes_a_float_where_one_is_meant(write):
    settings = load([write("grad_clip = 1"), "--learning_rate=1"])
    assert type(settings.training.grad_clip) is float
    assert type(settings.training.learning_rate) is float


def test_none_on_the_command_line_takes_back_what_a_file_set(write):
    settings = load([write("ffn_hidden = 100"), "--ffn_hidden=none", "--n_embd=96"])
    assert settings.model.ffn_hidden == 384


@pytest.mark.parametrize(
    ("argv", "length"),
    [
        ([], 256),
        (["--block_size=512"], 512),
        (["--block_size=64"], 64),
        (["--block_size=512", "--sequence_length=32"], 32),
        (["--sequence_length=1024"], 1024),
    ],
)
def test_sequence_length_follows_block_size_where_that_is_set(argv, length):
    assert load(argv).training.sequence_length == length


def test_sequence_length_follows_the_block_size_of_a_file(write):
    settings = load([write("block_size = 300")])
    assert settings.training.sequence_length == 300
    assert settings.origins["sequence_length"] == "derived"


def test_settings_are_frozen():
    settings = load([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.model = None
    with pytest.raises(AttributeError, match="immutable"):
        settings.training.seed = 1


# Config files


def test_what_a_file_imports_defines_or_hides_is_no_key(write):
    path = write(
        """
        from __future__ import annotations
        import math
        from pathlib import Path
        from math import pi, sqrt
        from components.norms import NORMS
        _layers = [2, 3]
        def double(x): return 2 * x
        class Helper: pass
        n_layer = double(_layers[1])
        """
    )
    settings = load([path])
    assert settings.model.n_layer == 6
    assert settings.explicit == {"n_layer"}


def test_a_key_is_a_key_whatever_is_assigned_to_it(write):
    [message] = problems(write("activation = len"))
    assert message.startswith("x.py:1: activation takes str or none, not <built-in function len>")


def test_a_public_name_that_is_no_key_is_refused(write):
    path = write("from math import pi\nlayers = 3\npi = 3\nfor i in range(2): pass")
    found = problems(path)
    assert [re.search(r":(\d): unknown key '(\w+)'", message).groups() for message in found] == [
        ("3", "pi"),
        ("2", "layers"),
        ("4", "i"),
    ]


def test_files_do_not_see_each_other_or_us(write):
    write("_hidden = 5", "a.py")
    with pytest.raises(NameError, match="name '_hidden' is not defined"):
        load(["a.py", write("n_layer = _hidden", "b.py")])
    with pytest.raises(NameError, match="name 'ConfigError' is not defined"):
        load([write("n_layer = ConfigError")])
    load([write("load = None\ndel load\n_seen = __name__, __file__")])
    assert configurator.load is load


def test_our_future_features_do_not_reach_a_file(write):
    with pytest.raises(NameError, match="name 'undefined' is not defined"):
        load([write("def f(x: undefined): pass")])


def test_a_file_may_define_a_dataclass(write):
    path = write(
        """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class _Sizes:
            layers: int = 7

        n_layer = _Sizes().layers
        """
    )
    assert load([path]).model.n_layer == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("n_layer = 0", 1),
        ("n_layer = 3\n\nn_layer = 0", 3),
        ("n_layer: int = 0", 1),
        ("n_layer = 3\nn_layer -= 3", 2),
        ("if True:\n    n_layer = 0", 2),
        ("for n_layer in (1, 0):\n    pass", 1),
        ("n_head, n_layer = 4, 0", 1),
        ("with open(__file__):\n    n_layer = 0\ndef f():\n    n_layer = 3", 2),
        ("n_layer = 0\n_x = [n_layer for n_layer in (1, 2)]", 1),
        ("from os import EX_OK as n_layer", 1),
    ],
)
def test_a_problem_names_the_line_that_last_set_the_key(write, text, line):
    assert problems(write(text)) == [f"x.py:{line}: n_layer=0 must be at least 1."]


def test_a_key_set_in_no_visible_line_names_its_file(write):
    assert problems(write("globals()['n_layer'] = 0")) == ["x.py: n_layer=0 must be at least 1."]


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("n_layer = 1\nn_head = 1 / 0\n", 2, ZeroDivisionError),
        ("def _f():\n    return int('a')\n\nn_layer = _f()", 2, ValueError),
        ("import no_such_module", 1, ModuleNotFoundError),
        ("\nraise KeyError('n')", 2, KeyError),
    ],
)
def test_an_error_in_a_file_s_own_code_keeps_its_traceback(write, text, line, error):
    path = write(text)
    with pytest.raises(error) as caught:
        load([path])
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (path, line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layer = 1\n\nn_head = = 2\n", "x.py:3: SyntaxError: invalid syntax (x.py, line 3)"),
        (
            f"n_layer = {'-' * 100_000}1",
            "x.py: SyntaxError: an expression is nested too deeply for Python to parse",
        ),
        ("n_layer = 1\nraise SystemExit", "x.py:2: SystemExit"),
        ("import sys\nsys.exit('bye')", "x.py:2: SystemExit: bye"),
        (
            "from model_config import PRESETS, ModelArchitectureConfig as _C\n"
            "_C.from_preset('lama')",
            "x.py:2: unknown preset 'lama'; did you mean 'llama'? Choices: "
            + ", ".join(PRESETS)
            + ".",
        ),
    ],
)
def test_what_a_user_can_fix_in_a_file_is_a_config_error_with_its_line(write, text, message):
    assert problems(write(text)) == [message]


def test_what_a_star_import_brings_is_no_key(write):
    settings = load([write("from math import *\nn_layer = 3\n")])
    assert settings.model.n_layer == 3


def test_a_missing_file_names_the_nearest(write, monkeypatch):
    write("", "run_small.py")
    monkeypatch.setattr(user_files, "CONFIG_FOLDER", Path("config"))
    Path("config").mkdir()
    write("", "config/arch_llama.py")
    assert problems("run_smal.py") == ["no file 'run_smal.py'; did you mean 'run_small.py'?"]
    assert problems("arch_lama.py") == [
        "no file 'arch_lama.py'; did you mean 'config/arch_llama.py'?"
    ]
    assert problems("llama") == ["no file 'llama'; did you mean 'config/arch_llama.py'?"]
    assert problems("zzz/qqq.py") == ["no file 'zzz/qqq.py'."]


def test_a_file_that_cannot_be_read_says_why(write, tmp_path):
    write("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    folder, latin = problems("folder", "latin.py")
    assert re.match(r"cannot read 'folder': .*Is a directory", folder)
    assert re.match(r"cannot read 'latin.py': .*can't decode byte", latin)


# The command line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["n_layer=6"], "cannot parse 'n_layer=6'; write --n_layer=6"),
        (["-n_layer=6"], "cannot parse '-n_layer=6'; write --n_layer=6"),
        (["--n_layer"], "cannot parse '--n_layer'; write --n_layer=VALUE"),
        (["--n_layer", "--seed=1"], "cannot parse '--n_layer'; write --n_layer=VALUE"),
        (
            ["--qk_norm", "--qk_norm=False"],
            "--qk_norm is given more than once: 'False' and 'True'; keep one.",
        ),
        (["--plugins", "none.py"], "no file 'none.py'."),
        (["--n_layer", "abc"], "--n_layer: n_layer takes int, not 'abc' (str)."),
        (["--print_config=True"], "cannot parse '--print_config=True'; write --print_config"),
        (
            ["--lr=1"],
            "--lr: unknown key 'lr'; did you mean 'learning_rate'? --help lists the keys.",
        ),
        (
            ["--device=gpu"],
            "--device: unknown device 'gpu'; did you mean 'cuda'? Choices: auto, cpu, cuda, mps.",
        ),
        (["--n_layer="], "--n_layer: n_layer takes int, not '' (str)."),
        (["--foo"], "--foo: unknown key 'foo'. --help lists the keys."),
        (["--foo=1"], "--foo: unknown key 'foo'. --help lists the keys."),
        (
            ["--n_layers=6"],
            "--n_layers: unknown key 'n_layers'; did you mean 'n_layer'? --help lists the keys.",
        ),
        (
            ["--n_layers", "6"],
            "--n_layers: unknown key 'n_layers'; did you mean 'n_layer'? --help lists the keys.",
        ),
        (
            ["--n_layer=6", "--n_layer=8"],
            "--n_layer is given more than once: '6' and '8'; keep one.",
        ),
        (["--n_layer=abc"], "--n_layer: n_layer takes int, not 'abc' (str)."),
        (["--n_layer=1.5"], "--n_layer: n_layer takes int, not 1.5 (float)."),
        (["--n_layer=True"], "--n_layer: n_layer takes int, not True (bool)."),
        (["--bias=1"], "--bias: bias takes True or False, not 1 (int)."),
        (["--dropout=1"], "--dropout: dropout=1.0 must be below 1."),
        (
            ["--dtype=float61"],
            "--dtype: unknown dtype 'float61'; did you mean 'float16'? Choices: float32, "
            "bfloat16, float16, auto.",
        ),
        (
            ["--arch_preset=lama"],
            "--arch_preset: unknown arch_preset 'lama'; did you mean 'llama'? Choices: "
            + ", ".join(PRESETS)
            + ".",
        ),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_the_fix(argv, message):
    assert problems(*argv) == [message]


def test_a_value_may_stand_apart_from_its_flag():
    asked = configurator.read(["--n_layer", "6", "--bias=False", "--dropout", "0.1"])
    assert [asked.value(key) for key in ("n_layer", "bias", "dropout")] == [6, False, 0.1]


def test_a_boolean_flag_without_a_value_is_true(write):
    asked = configurator.read(["--qk_norm", "--compile", write("n_layer = 3"), "--tf32"])
    assert [asked.value(key) for key in ("qk_norm", "compile", "tf32")] == [True, True, True]
    assert asked.value("n_layer") == 3


def test_a_flag_without_a_value_does_not_swallow_a_file(write):
    path = write("n_layer = 0")
    assert problems("--seed", path) == [
        "cannot parse '--seed'; write --seed=VALUE",
        "x.py:1: n_layer=0 must be at least 1.",
    ]


@pytest.mark.parametrize("key", NANOGPT_KEYS)
def test_a_key_of_nanogpt_is_answered_with_its_replacement(key, write):
    assert problems(f"--{key}=1") == [f"--{key}: there is no key {key!r}: {NANOGPT_KEYS[key]}"]
    [message] = problems(write(f"{key} = 1"))
    assert message.startswith(f"x.py:1: there is no key {key!r}")


def test_the_replacements_of_nanogpt_keys_are_keys():
    assert not set(NANOGPT_KEYS) & set(key_table())
    advice = " ".join(NANOGPT_KEYS.values())
    named = set(re.findall(r"\b[a-z]+_[a-z]+\b", advice)) | {"resume"}
    assert named <= set(key_table()) | set(NANOGPT_KEYS)


@pytest.mark.parametrize(("foreign", "own"), (KEY_SYNONYMS | VALUE_SYNONYMS).items())
def test_a_name_of_other_projects_is_answered_with_ours(foreign, own):
    assert foreign not in key_table()
    choices = [*key_table(), *DEVICES, *DTYPES]
    assert own in choices
    assert nearest(foreign, choices) == f"; did you mean {own!r}?"


# One error for everything


def test_every_problem_of_every_source_is_in_one_error(write):
    first = write("n_layers = 6\nlr_schedule = 'cosin'\nbeta1 = True\n", "a.py")
    second = write("lr_schedule = 'linear'\nnormalization = 'rmsnrm'\n", "b.py")
    found = problems(first, second, "--n_head=0", "--min_lr=1", "--seed")
    assert [message.split(" ")[0] for message in found] == [
        "cannot",
        "a.py:2:",  # though b.py has the last word
        "a.py:1:",
        "a.py:3:",
        "b.py:2:",
        "--n_head:",
        "min_lr=1",
    ]
    assert "Start the names of your own variables with '_'." in found[2]
    assert "did you mean 'rmsnorm'? Choices: layernorm, " in found[4]


def test_a_problem_between_keys_names_where_each_came_from(write):
    path = write("n_embd = 100\nmin_lr = 1.0")
    assert problems(path, "--n_head=7") == [
        "n_embd=100 is not a multiple of n_head=7; change one, or set head_dim. "
        "(n_embd: x.py:1; n_head: --n_head)",
        "min_lr=1 is above learning_rate=0.001; lower min_lr. (min_lr: x.py:2; learning_rate: "
        "default)",
    ]


def test_a_sequence_longer_than_the_block_is_refused(write):
    path = write("arch_preset = 'llama'\nblock_size = 128")
    assert problems(path, "--sequence_length=256") == [
        "sequence_length=256 is longer than block_size=128; lower it or raise block_size. "
        "(sequence_length: --sequence_length; block_size: x.py:2)"
    ]


def test_an_option_that_nothing_would_use_is_refused_where_it_was_set():
    [message] = problems("--arch_preset=gpt2", "--rope_theta=500000")
    assert message == (
        "--rope_theta: rope_theta=500000 belongs to position_encoding=rope, which no layer uses; "
        "drop it, or select that component."
    )


def test_so_is_one_at_its_default(write):
    path = write("arch_preset = 'gpt2'\nrope_theta = 10000.0")
    assert problems(path)[0].startswith("x.py:2: rope_theta=10000.0 belongs to position_encoding=")


def test_what_a_preset_or_file_says_of_another_part_is_taken_back_by_default(write):
    path = write("position_encoding = 'rope'\nrope_theta = 5e5\nmax_iters = 7")
    assert len(problems(path, "--position_encoding=alibi")) == 1
    settings = load([path, "--position_encoding=alibi", "--rope_theta=default"])
    assert "rope_theta" not in settings.model
    assert settings.explicit == {"position_encoding", "max_iters"}
    again = load([path, "--rope_theta=default", "--max_iters=default"])
    assert (again.model.rope_theta, again.training.max_iters) == (10000.0, 2000)
    assert again.origins["rope_theta"] == again.origins["max_iters"] == "default"


def test_default_takes_back_to_the_preset(write):
    path = write("arch_preset = 'llama'\nnormalization = 'layernorm'")
    settings = load([path, "--normalization=default"])
    assert settings.model.normalization == "rmsnorm"
    assert settings.origins["normalization"] == "preset llama"


def test_an_unknown_key_is_not_taken_back():
    assert problems("--n_layers=default")[0].startswith("--n_layers: unknown key 'n_layers'")


def test_keys_without_a_part_may_be_left_out():
    """As in a sweep, where a key applies to the arms that own it."""
    asked = read(["--arch_preset=gpt2", "--rope_theta=5e5", "--n_layer=3"])
    settings = resolve(asked, allow_unused={"rope_theta"})
    assert settings.unused == {"rope_theta"}
    assert settings.explicit == {"arch_preset", "n_layer"}
    assert "rope_theta" not in settings.to_dict()


# Patterns over the layers


def test_a_flag_or_a_file_may_give_a_pattern(write):
    path = write("n_layer = 3\nffn_hidden = [64, 64, 96]\nposition_encoding = 'rope*2+none'")
    settings = load([path, "--sliding_window=128+none*", "--rope_theta=1e+4+5e5"])
    said = settings.to_dict()
    assert said["ffn_hidden"] == "64*2+96"
    assert said["sliding_window"] == "128+none*"
    assert said["rope_theta"] == "10000+500000"
    assert [layer.sliding_window for layer in settings.model.layers] == [128, None, None]
    assert settings.origins["ffn_hidden"] == "x.py:2"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--sliding_window=128*12+none"],
            "sliding_window='128*12+none' needs at least 13 layers, but n_layer=12; shorten it, or "
            "raise n_layer. (sliding_window: --sliding_window; n_layer: default)",
        ),
        (
            ["--ffn_hidden=0*2+4"],
            "--ffn_hidden: ffn_hidden='0*2+4', layer 0: ffn_hidden=0 must be at least 1.",
        ),
        (
            ["--ffn_hidden=8*+4"],
            "--ffn_hidden: ffn_hidden='8*+4' uses '*' without a count before its last value; "
            "write a pattern as 'a*3+b' (repeats over the layers) or 'a+b*' (b in all later "
            "layers).",
        ),
        (["--n_embd=64+32"], "--n_embd: n_embd takes int, not '64+32' (str)."),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(argv, message):
    assert problems(*argv) == [message]


def test_a_renamed_key_is_answered_with_its_name(write):
    said = "the key 'gdn_n_head' was renamed to 'linear_n_head'."
    assert problems("--gdn_n_head=2") == [f"--gdn_n_head: {said}"]
    assert problems(write("gdn_n_head = 2")) == [f"x.py:1: {said}"]
    with pytest.raises(ConfigError, match="was renamed to 'linear_n_head'"):
        ModelArchitectureConfig(gdn_n_head=2)


@pytest.mark.parametrize("key", REPLACED)
def test_a_key_that_patterns_replaced_is_answered_with_them(key, write):
    said = removed_key_message(key)
    assert said == f"the key {key!r} was removed; {REPLACED[key]}."
    assert problems(f"--{key}=SL") == [f"--{key}: {said}"]
    assert problems(write(f"{key} = 'SL'")) == [f"x.py:1: {said}"]
    with pytest.raises(ConfigError) as raised:
        ModelArchitectureConfig(**{key: "SL"})
    assert [problem.message for problem in raised.value.problems] == [said]


def test_no_problem_is_reported_that_only_follows_from_another():
    assert problems("--n_embd=abc", "--n_head=7") == [
        "--n_embd: n_embd takes int, not 'abc' (str)."
    ]
    assert len(problems("--arch_preset=lama", "--n_head=7")) == 1
    assert len(problems("missing_file.py", "--n_head=7")) == 1


def test_the_script_prints_the_error_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--n_layer=0"])
    with pytest.raises(SystemExit) as caught:
        run_cli(load)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("1 config error:\n  - --n_layer: n_layer=0 must be at least 1.\n")


def test_the_script_exits_with_what_main_returns(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--n_layer=2"])
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda argv: len(argv))
    assert caught.value.code == 1


@pytest.mark.parametrize("said", ["a few words", "word " * 9999])
def test_nobody_reading_the_output_is_no_error(said):
    """Whether the pipe breaks while there is more to print, or at the end."""
    script = f"from cli import run_cli; run_cli(lambda argv: print({said!r}))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# A warm-up longer than the run


WARM = "max_iters = 600\nwarmup_iters = 30\n"


def test_a_file_s_warm_up_that_max_iters_leaves_no_room_for_is_scaled(write):
    settings = load([write(WARM), "--max_iters=20"])
    assert settings.training.warmup_iters == 1
    assert settings.origins["warmup_iters"] == "x.py:2, scaled to --max_iters"
    assert settings.notes == (
        "warmup_iters: 30 -> 1, scaled from 600 steps (x.py:2) to --max_iters=20.",
    )


def test_a_file_s_decay_is_scaled_with_its_warm_up(write):
    settings = load([write(WARM + "lr_decay_iters = 300"), "--max_iters=20"])
    assert (settings.training.warmup_iters, settings.training.lr_decay_iters) == (1, 10)
    assert len(settings.notes) == 2


def test_a_warm_up_that_would_fill_the_run_is_scaled(write):
    settings = load([write(WARM), "--max_iters=30"])
    assert settings.training.warmup_iters == 2
    assert len(settings.notes) == 1


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("max_iters = 30\nwarmup_iters = 30", "--max_iters=30"),  # as the file says
        ("max_iters = 30\nwarmup_iters = 1", "--max_iters=1"),  # no warm-up is shorter
    ],
)
def test_a_warm_up_that_fills_the_run_may_stay(write, text, flag):
    assert load([write(text), flag]).notes == ()


@pytest.mark.parametrize("flag", ["--max_iters=31", "--max_iters=900", "--n_layer=2"])
def test_a_warm_up_with_room_stays(write, flag):
    settings = load([write(WARM), flag])
    assert (settings.training.warmup_iters, settings.notes) == (30, ())


def test_a_run_of_no_steps_may_have_a_warm_up_in_its_file(write):
    assert load([write(WARM), "--max_iters=0"]).training.warmup_iters == 1


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        (WARM, ("--max_iters=20", "--warmup_iters=30")),
        (WARM, ("--lr_decay_iters=20",)),
        (WARM + "max_iters = 20", ()),
        (WARM + "max_iters = 25", ("--max_iters=20",)),
    ],
)
def test_a_warm_up_that_nothing_scales_is_refused(write, text, argv):
    [message] = problems(write(text), *argv)
    assert message.startswith("warmup_iters=30 is longer than the schedule of 2")


@pytest.mark.parametrize("text", ["warmup_iters = 'x'", "warmup_iters = 30\nmax_iters = [1]"])
def test_what_is_no_number_of_steps_is_reported_as_such(write, text):
    [message] = problems(write(text), "--max_iters=20")
    assert "_iters takes int" in message


# Parts of one's own


def test_a_plugin_registers_a_part_before_names_are_checked(write):
    path = write(PART, "parts.py")
    settings = load([f"--plugins={path}", "--normalization=doubling"])
    assert settings.model.normalization == "doubling"
    assert settings.plugins == {"parts.py": PART}


def test_a_config_file_may_name_plugins(write):
    write(PART, "parts.py")
    write("_SEEN = 1", "other.py")
    path = write("plugins = 'parts.py, other.py'\nnormalization = 'doubling'")
    settings = load([path])
    assert settings.model.normalization == "doubling"
    assert list(settings.plugins) == ["parts.py", "other.py"]


def test_a_module_that_a_config_file_imports_may_register_a_part(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(PART, "my_own_parts.py")
    text = "import my_own_parts\nnormalization = 'doubling'"
    assert load([write(text)]).plugins == {"x.py": text}


def test_a_config_file_may_register_a_part_itself(write):
    path = write(PART + "\nnormalization = 'doubling'\n")
    plain = write("n_layer = 2", "plain.py")
    settings = load([path, plain])
    assert settings.model.normalization == "doubling"
    assert list(settings.plugins) == ["x.py"]
    assert settings.explicit == {"normalization", "n_layer"}


def test_the_same_files_may_be_loaded_twice(write):
    argv = [write(PART + "\nnormalization = 'doubling'\n")]
    assert load(argv) == load(argv)


def test_a_plugin_that_fails_keeps_its_traceback(write):
    path = write("from components.norms import NORMS\n\nNORMS.no_such_thing\n", "parts.py")
    with pytest.raises(AttributeError, match="no_such_thing") as caught:
        load([f"--plugins={path}"])
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (path, 3)


def test_the_command_shows_where_a_plugin_of_the_user_s_raises(write):
    path = write("def _width():\n    raise ValueError('odd width')\n\n_width()", "parts.py")
    script = ROOT / "train.py"
    command = [sys.executable, str(script), f"--plugins={path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(
        r'File "parts.py", line 2, in _width\n    raise ValueError\(.odd width.\)\n'
        r"ValueError: odd width\n$",
        done.stderr,
    )


def test_every_plugin_that_is_missing_or_exits_is_reported(write):
    path = write("\nraise SystemExit(3)", "parts.py")
    missing = "no file 'part.py'; did you mean 'parts.py'?"
    assert problems(f"--plugins={path}, part.py,") == ["parts.py:2: SystemExit: 3", missing]


def test_a_part_under_a_name_that_is_taken_is_refused(write):
    path = write(PART.replace('"doubling"', '"rmsnorm"'), "parts.py")
    [message] = problems(f"--plugins={path}")
    assert re.match(r"parts.py:\d+: normalization: the name 'rmsnorm' is taken by RMSNorm", message)


def test_a_setting_of_plugins_that_is_no_text_is_refused(write):
    assert problems(write("plugins = 5")) == ["x.py:1: plugins takes str, not 5 (int)."]


# There and back


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_json(preset):
    settings = load([f"--arch_preset={preset}", "--max_iters=7", "--lr_schedule=constant"])
    again = settings_from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again.arch_preset == preset
    assert again.model == settings.model
    assert again.training == settings.training
    assert again.to_dict() == settings.to_dict()


def test_saved_settings_need_the_parts_that_they_name(write):
    settings = load([f"--plugins={write(PART, 'parts.py')}", "--normalization=doubling"])
    del NORMS._entries["doubling"], NORMS._canonical["doubling"]
    with pytest.raises(ConfigError, match="saved settings: unknown normalization 'doubling'"):
        settings_from_dict(settings.to_dict())
    assert run_plugins("parts.py") == settings.plugins
    assert settings_from_dict(settings.to_dict()).model == settings.model


def test_saved_settings_may_lack_a_key_but_not_have_a_strange_one():
    values = load([]).to_dict()
    del values["qk_norm"], values["arch_preset"]
    assert settings_from_dict(values).to_dict() == load([]).to_dict()
    with pytest.raises(ConfigError, match="saved settings: unknown key 'n_layers'"):
        settings_from_dict(values | {"n_layers": 3})


def test_the_data_may_replace_a_vocabulary_that_was_not_set():
    assert "vocab_size" not in load(["--n_layer=2"]).explicit
    assert "vocab_size" in load(["--vocab_size=300"]).explicit


# Values that are absurd


class Unprintable:
    """A value that answers nothing."""

    def __repr__(self):
        raise RuntimeError

    __eq__ = __ne__ = __str__ = __bool__ = __repr__


@pytest.mark.parametrize("key", one_in(2, ["n_layer", "plugins"]))
def test_a_value_that_cannot_be_shown_is_refused(write, monkeypatch, key):
    monkeypatch.setattr(configurator, "Unprintable", Unprintable, raising=False)
    path = write(f"from configurator import Unprintable as _U\n{key} = _U()")
    [message] = problems(path)
    assert re.match(rf"x.py:2: {key} takes .+, not <Unprintable without a repr>", message)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            f"--n_layer={'9' * 401}",
            r"--n_layer: n_layer=9{38}\.\.\.9{38} \(401 characters\) must be",
        ),
        (
            f"--n_layer={'-' * 5000}1",
            r"--n_layer: n_layer takes int, not '-+\.\.\.-+1' \(5003 char",
        ),
        ("--n_layer=b'1'", r"--n_layer: n_layer takes int, not b'1' \(bytes\)"),
        ("--n_layer={1}", r"--n_layer: n_layer takes int, not \{1\} \(set\)"),
        ("--dropout=1j", r"--dropout: dropout takes float, not 1j \(complex\)"),
        ("--learning_rate=1e999", r"--learning_rate: learning_rate=inf must be finite"),
        ("--run_name=a\x1b[2J", r"--run_name: run_name='a\\x1b\[2J' contains unprintable"),
        ("--out_dir=", r"--out_dir: out_dir='' does not name a folder"),
        ("--k\x1b\n=1", r"--k\\x1b\\n: unknown key 'k\\x1b\\n'"),
    ],
)
def test_an_absurd_flag_is_refused_in_one_printable_line(flag, message):
    [found] = problems(flag)
    assert re.match(message, found), found
    assert found.isprintable()


def test_a_bad_init_from_is_reported_with_everything_else(tmp_path):
    with pytest.raises(ConfigError) as caught:
        new_settings(read([f"--init_from={tmp_path}", "--n_layer=0", "--beta1=7", "--typo=1"]))
    found = [problem.message for problem in caught.value.problems]
    assert found[0].startswith("--init_from: ")
    assert [message.split(":")[0] for message in found[1:]] == ["--n_layer", "--beta1", "--typo"]


# What is printed


def printed_help(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        load(["--help", *argv])
    assert caught.value.code == 0
    return capsys.readouterr().out


def help_entries(text: str) -> dict[str, str]:
    """The entry of each key, on one line."""
    found = re.findall(r"^  --(\w+) +((?:.|\n {20})*)", text, flags=re.MULTILINE)
    return {key: " ".join(entry.split()) for key, entry in found}


def test_help_lists_every_key_with_its_type_default_and_choices(capsys):
    text = printed_help(capsys, "--n_layer=wrong")
    assert max(map(len, text.splitlines())) <= 100
    assert len(re.findall(r"python train.py \S+", text)) >= 2
    entries = help_entries(text)
    for name, key in key_table().items():
        assert key.help in entries[name], name
        assert re.search(r"\[.+; default .+\]$", entries[name]), name
        assert ("; per layer;" in entries[name]) == key.per_layer, name
        for choice in key.choices or ():
            assert configurator.shown(choice) in entries[name], name
    assert set(entries) == {*key_table(), "help", "print_config", "dry_run"}


def test_help_describes_every_preset(capsys):
    text = " ".join(printed_help(capsys).partition("\nPresets (--arch_preset)\n")[2].split())
    for name, preset in PRESETS.items():
        assert f"{name} {preset.description}" in text


def test_help_is_printed_by_its_short_name_too(capsys):
    with pytest.raises(SystemExit):
        load(["-h"])
    assert capsys.readouterr().out == printed_help(capsys)


def test_help_says_which_parts_a_key_belongs_to(capsys):
    entries = help_entries(printed_help(capsys))
    assert entries["rope_theta"].endswith("; default 10000; for position_encoding=rope]")
    assert entries["rope_original_block_size"].endswith("; for rope_scaling=yarn or llama3]")
    for key in ("activation", "qk_norm", "norm_eps", "n_layer"):  # which every layer has
        assert "; of " not in entries[key], key


def test_help_groups_the_keys(capsys):
    text = printed_help(capsys)
    for heading, first in (("Sizes", "n_layer"), ("Data", "dataset"), ("Machine", "device")):
        assert f"\n\n{heading}\n  --{first} " in text


def test_help_knows_a_plugin_s_parts(capsys, write):
    assert "doubling" in printed_help(capsys, f"--plugins={write(PART, 'parts.py')}")


def test_help_has_the_defaults_of_a_run_without_arguments(capsys):
    entries, bare = help_entries(printed_help(capsys)), load([])
    for name, key in key_table().items():
        value = bare.to_dict().get(name, key.default)
        if bare.origins.get(name) == "derived":
            value = key.default
        if name == "normalization":
            value = "auto"  # which a run resolves by `bias`
        shown = re.escape(configurator.shown(value))
        assert re.search(rf"; default {shown}(; for .*)?\]$", entries[name]), name


def test_print_config_shows_every_value_and_its_origin(capsys, write):
    path = write("arch_preset = 'llama'\nn_layer = 3\nsliding_window = [8, 8, None]")
    train.main([path, "--print_config", "--max_iters=10"])
    rows = capsys.readouterr().out.splitlines()
    cells = {row.split()[0]: re.split(r" {2,}", row)[1:] for row in rows}
    assert list(cells) == [key for key in key_table() if key in load([path]).to_dict()]
    assert cells["n_layer"] == ["3", "x.py:2"]
    assert cells["normalization"] == ["rmsnorm", "preset llama"]
    assert cells["rope_theta"] == ["10000", "default"]
    assert cells["max_iters"] == ["10", "--max_iters"]
    assert cells["lr_decay_iters"] == ["10", "derived"]
    assert cells["sliding_window"] == ["8*2+none", "x.py:3"]
    assert cells["n_kv_head"] == ["12", "derived"]
    assert cells["attention_softcap"] == ["none", "default"]
    assert cells["plugins"] == ["''", "default"]
    assert "rope_scaling_factor" not in cells
    assert len({row.index(cells[row.split()[0]][1], 35) for row in rows[:3]}) == 1


def test_print_config_shows_a_value_that_equals_the_default_as_it_was_given(capsys):
    train.main(["--ffn_multiplier=4", "--print_config"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ffn_multiplier", "4", "--ffn_multiplier"] in rows


def test_print_config_reports_problems_instead():
    assert problems("--print_config", "--n_layer=0") == ["--n_layer: n_layer=0 must be at least 1."]


# The key space


def test_every_key_has_a_role_and_stands_under_one_heading():
    assert set(key_table()) == set(KEYS)
    assert all(isinstance(key.role, Role) for key in key_table().values())
    assert {key.section for key in key_table().values()} >= {"Sizes", "Attention", "RoPE scaling"}


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.py")), ids=lambda p: p.name)
def test_every_config_file_of_the_project_loads(path):
    model = ["--init_from=model"] if path.name.startswith("finetune_") else []
    settings = load([str(path), *model])
    assert settings.plugins == {}
    assert settings.explicit
