"""Options that parts of a user's own bring: known everywhere that a key is, and listed nowhere."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path

import pytest
import torch

import train
from comparison.runs import load_run
from components.norms import NORMS
from components.positions import POSITIONS
from configurator import key_table, load, read, settings_from_dict
from errors import ConfigError, UserError
from model_builder import GPT
from model_config import ModelArchitectureConfig
from options import KEYS, Role
from recipe.optimizers import parameter_groups
from tests import own_parts
from tests.contract import test_every_model as contract
from tests.measured import assert_close
from tests.parametrized import one_in
from tests.saved_run import save_run
from tests.tiny import tiny_config, tiny_layer, tiny_model, tokens
from tests.tiny_data import tiny_run_flags, write_tiny_dataset
from training.resume import find_start, load_settings
from user_files import run_plugins

PARTS = '''
import torch
from torch import nn
from components.activations import ACTIVATIONS, Activation
from components.attention_backends import ATTENTION_BACKENDS, ManualAttention
from components.norms import NORMS, NormOptions
from components.positions import POSITIONS, PositionEncoding
from options import option


@POSITIONS.register("wave", label="Wave")
class Wave(PositionEncoding):
    """Queries and keys grow and shrink along the sequence."""

    class Options:
        wave_length: float = option(
            12.0, "Wave: tokens from crest to crest", above=1, per_layer=True, tag="Length{}"
        )
        wave_height: float = option(0.5, "Wave: how far it swells", at_least=0, per_layer=True)

    def __init__(self, config):
        super().__init__(config)
        turns = torch.arange(config.block_size) / config.wave_length
        wave = 1 + config.wave_height * torch.sin(2 * torch.pi * turns)
        self.register_buffer("wave", wave[:, None], persistent=False)

    def rotate(self, q, k, start):
        wave = self.wave[start : start + q.shape[2]].to(q.dtype)
        return q * wave, k * wave


@ACTIVATIONS.register("swish", label="Swish")
class Swish(Activation):
    """x times the logistic function of a learned multiple of x."""

    class Options:
        swish_start: float = option(1.0, "Swish: the multiple at first", above=0, per_layer=True)

    def __init__(self, config):
        super().__init__(config)
        self.multiple = nn.Parameter(torch.tensor(config.swish_start))

    def forward(self, x):
        return x * torch.sigmoid(self.multiple * x)


@NORMS.register("power", label="Power")
class PowerNorm(nn.Module):
    """Divide by the mean of a power, then one learned factor a dimension."""

    class Options(NormOptions):
        norm_power: float = option(2.0, "PowerNorm: the power", above=0, per_layer=True, tag="P{}")

    def __init__(self, dim, config):
        super().__init__()
        self.power, self.eps = config.norm_power, config.norm_eps
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        mean = (x.abs() ** self.power).mean(dim=-1, keepdim=True) + self.eps
        return self.scale * x / mean ** (1 / self.power)


@ATTENTION_BACKENDS.register("chunked", label="Chunked")
class Chunked(ManualAttention):
    """The formula, by chunks, as it were."""

    class Options:
        chunk_size: int = option(64, "chunked: queries at a time", at_least=1)
'''

OWN_KEYS = {"wave_length", "wave_height", "swish_start", "norm_power", "chunk_size"}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flag that names the file of the parts, beside which the test runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    return "--plugins=parts.py"


@pytest.fixture
def registered(plugin: str) -> None:
    """The parts, as when the file has been named."""
    run_plugins("parts.py")


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(argv)
    return [problem.message for problem in caught.value.problems]


# Where keys are listed


def test_they_are_unknown_without_the_plugin():
    assert problems("--wave_length=7")[0].startswith("--wave_length: unknown key 'wave_length'")
    assert not OWN_KEYS & set(KEYS)


def test_the_roles_are_those_of_what_the_parts_are_for(registered):
    roles = {key: KEYS[key].role for key in OWN_KEYS}
    assert roles == {**dict.fromkeys(OWN_KEYS, Role.ARCHITECTURE), "chunk_size": Role.EXECUTION}
    assert set(key_table()) > OWN_KEYS


def test_help_has_them_with_the_parts(plugin, capsys):
    with pytest.raises(SystemExit):
        read([plugin, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    assert (
        "--wave_length Wave: tokens from crest to crest [float; per layer; default 12; for "
        "position_encoding=wave]"
    ) in words
    assert "--chunk_size chunked: queries at a time [int; default 64; for " in words
    heading = next(part for part in text.split("\n\n") if "--wave_height" in part)
    assert heading.startswith("Position encoding\n")


def test_help_without_the_plugin_has_not(capsys):
    with pytest.raises(SystemExit):
        read(["--help"])
    assert "Wave:" not in capsys.readouterr().out


def test_print_config_has_those_in_use(plugin, capsys):
    argv = [plugin, "--position_encoding=wave", "--wave_length=7", "--n_layer=3"]
    train.main([*argv, "--wave_height=0.25*2+1", "--print_config"])
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["wave_length"].split() == ["7", "--wave_length"]
    assert rows["wave_height"].split() == ["0.25*2+1", "--wave_height"]
    assert not {"swish_start", "norm_power", "chunk_size"} & rows.keys()
    train.main([plugin, "--activation=swish", "--print_config"])
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["swish_start"].split() == ["1", "default"]


# In a config


@pytest.mark.parametrize(
    ("keys", "tags"),
    [
        ({}, ""),
        ({"wave_length": 12.0}, ""),
        ({"wave_length": 7.5}, "-Length7.5"),
        ({"wave_height": 0.25}, "-WaveHeight0.25"),
        ({"wave_length": 9.0, "wave_height": "0.25+1"}, "-Length9-WaveHeight(0.25+1)"),
    ],
)
def test_names_spell_them_by_their_tag_or_by_the_key(registered, keys, tags):
    config = tiny_config(position_encoding="wave", **keys)
    assert config.architecture_name == f"2L-4H-32D-Wave-LN-GELU-PreNorm-T24{tags}"


def test_execution_is_not_in_the_name(registered):
    one, other = (tiny_config(attention_backend="chunked", chunk_size=n) for n in (64, 3))
    assert one != other
    assert one.architecture_name == other.architecture_name


def test_there_and_back(registered):
    config = tiny_config(position_encoding="wave", wave_length="7+9", activation="swish")
    saved = json.loads(json.dumps(config.to_dict()))
    assert (saved["wave_length"], saved["wave_height"], saved["swish_start"]) == ("7+9", 0.5, 1.0)
    assert ModelArchitectureConfig.from_dict(saved) == config
    assert "norm_power" not in saved


def test_each_layer_has_its_own(registered):
    model = GPT(tiny_config(n_layer=4, position_encoding="wave+none", wave_height="0.5*2+1*2"))
    heights = [layer.get("wave_height") for layer in model.config.layers]
    assert heights == [0.5, None, 1.0, None]
    encodings = [model.position_encodings[which] for which in model._position_of_layer]
    crests = [encoding.wave.max().item() for encoding in (encodings[0], encodings[2])]
    assert crests == pytest.approx([1.5, 2.0])
    assert encodings[1] is encodings[3]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wave_length": 7.0}, "wave_length=7.0 belongs to position_encoding=wave, which no layer"),
        ({"wave_length": 12.0}, "wave_length=12.0 belongs to position_encoding=wave"),
        ({"norm_power": 3.0}, "norm_power=3.0 belongs to normalization=power"),
        ({"swish_start": 3.0, "ffn_type": "swiglu"}, "belongs to activation=swish"),
        ({"position_encoding": "wave", "wave_length": 1}, "wave_length=1.0 must be above 1."),
        (
            {"position_encoding": "wave", "wave_lenght": 7},
            "'wave_lenght'; did you mean 'wave_length'",
        ),
    ],
)
def test_what_is_refused(registered, keys, message):
    with pytest.raises(ConfigError) as raised:
        tiny_config(**keys)
    assert message in str(raised.value)


def test_where_they_are_given_is_told(plugin, tmp_path):
    (tmp_path / "run.py").write_text("n_layer = 2\nwave_length = 7\n")
    assert problems(plugin, "run.py", "--norm_power=3") == [
        "run.py:2: wave_length=7 belongs to position_encoding=wave, which no layer uses; drop "
        "it, or select that component.",
        "--norm_power: norm_power=3 belongs to normalization=power, which no layer uses; drop "
        "it, or select that component.",
    ]


def test_a_config_file_may_bring_a_part_and_set_its_key(plugin, tmp_path):
    text = PARTS + "\nposition_encoding = 'wave'\nwave_length = 7\n"
    (tmp_path / "both.py").write_text(text)
    settings = load(["both.py"])
    assert settings.model.wave_length == 7.0
    line = text[: text.index("wave_length = 7")].count("\n") + 1
    assert settings.origins["wave_length"] == f"both.py:{line}"
    assert settings.explicit == {"position_encoding", "wave_length"}


def test_a_file_that_is_run_twice_has_the_keys_of_the_last_time(plugin, tmp_path):
    load([plugin])
    (tmp_path / "parts.py").write_text(
        PARTS.replace("wave_height", "wave_depth").replace("12.0", "20.0")
    )
    settings = load([plugin, "--position_encoding=wave"])
    assert settings.model.wave_length == 20.0
    assert "wave_depth" in KEYS
    assert "wave_height" not in KEYS


# What a plugin may not declare


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("n_layer: int = option(3, 'x')", "the option 'n_layer' is already declared as a"),
        ("max_iters: int = option(3, 'x')", "the option 'max_iters' is already declared as a"),
        (
            "rope_theta: float = option(3.0, 'x')",
            "the option 'rope_theta' is already declared differently by position_encoding=rope; "
            "choose another name, or inherit from that Options class.",
        ),
        ("layers: int = option(3, 'x')", "the option name 'layers' is reserved"),
        ("help: int = option(3, 'x')", "the option name 'help' is reserved"),
        ("a: list = option([], 'x')", "Options.a has the type <class 'list'>; use int, float, s"),
        ("a: list[int] = option(None, 'x')", "Options.a has the type list[int]; use int, float"),
        ("a: 'Foo' = option(3, 'x')", "has an unknown type: name 'Foo' is not defined"),
        (
            "a: int = option(3, 'x', role='lenght')",
            "the role 'lenght'; Choices: arch",
        ),
        ("a: int = option(1, 'x', choices=iter((1, 2)))", "choices that can be read only once"),
        (
            "a: int = option(1, 'x', tag='A{b}')",
            "Options.a has the tag 'A{b}', which is not a format",
        ),
        ("a: int = option(1, 'x', tag='A{')", "Options.a has the tag 'A{', which is not a format"),
        ("a: int = option(1, 'x', tag=('N', 'Y'))", "a tuple must be the words of a bool"),
        (
            "a: str = option('b', 'x', choices=('b', 'c'), tag={'b': 'B'})",
            "Options.a has a tag without a word for c",
        ),
        ("bare: int = 3", "Mine.Options.bare must be created by option(...)"),
        ("bare: int", "Mine.Options.bare must be created by option(...)"),
    ],
)
def test_a_part_that_declares_wrongly_is_refused_and_not_entered(
    plugin, tmp_path, declared, message
):
    (tmp_path / "parts.py").write_text(
        "from components.norms import NORMS, RMSNorm\n"
        "from options import option\n"
        '@NORMS.register("mine", label="Mine")\n'
        "class Mine(RMSNorm):\n"
        '    """A norm."""\n'
        "    class Options:\n"
        f"        {declared}\n"
    )
    before = set(KEYS)
    [problem] = problems(plugin)
    assert re.match(r"parts\.py:\d+: normalization: 'mine': ", problem)
    assert message in problem
    assert "mine" not in NORMS
    assert set(KEYS) == before


@pytest.mark.parametrize("declared", ["option(3)", "option(3, '')", "option(3, help=4)"])
def test_an_option_without_help_is_refused_with_an_example(plugin, tmp_path, declared):
    (tmp_path / "parts.py").write_text(f"from options import option\n\na = {declared}\n")
    assert problems(plugin) == [
        "parts.py:3: option(3) needs a default and a line of help text, for example "
        'width: int = option(3, "width of the window, in tokens", at_least=1).'
    ]
    (tmp_path / "parts.py").write_text("from options import option\n\na = option()\n")
    assert problems(plugin)[0].startswith("parts.py:3: option() needs a default and a line")


FAILING = """
from components.norms import NORMS, RMSNorm
from errors import Problem
from options import option

@NORMS.register("mine", label="Mine")
class Mine(RMSNorm):
    "A norm."
    class Options:
        first: int | None = option(None, "x", derive=lambda config: {first})
        second: int | None = option(None, "x", derive=lambda config: config.first, plain={plain})
    @classmethod
    def problems(cls, config):
        yield from {problems}
    @classmethod
    def idle(cls, config):
        return {idle}
"""
SOUND = {"first": "3", "plain": "None", "problems": "()", "idle": "()"}


@pytest.mark.parametrize(
    ("failing", "kind", "line", "note"),
    [
        ({"first": "1 // 0"}, ZeroDivisionError, 10, "`derive` of the option 'first' of "),
        ({"first": "config.n_heads"}, AttributeError, 10, "`derive` of the option 'first' of "),
        ({"problems": "1 // 0"}, ZeroDivisionError, 14, "problems() of "),
        ({"idle": "[1 // 0]"}, ZeroDivisionError, 17, "idle() of "),
        ({"plain": "lambda config: 1 // 0"}, ZeroDivisionError, 11, "`plain` of the option 'seco"),
    ],
)
def test_an_error_of_a_part_s_own_code_keeps_its_traceback_and_names_the_part(
    plugin, tmp_path, failing, kind, line, note
):
    (tmp_path / "parts.py").write_text(FAILING.format(**SOUND | failing))
    with pytest.raises(kind) as raised:
        load([plugin, "--normalization=mine"]).model.architecture_name  # noqa: B018
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert line in [frame.lineno for frame in frames if frame.filename == "parts.py"]
    [said] = raised.value.__notes__
    assert said.startswith(note)
    assert "normalization=mine" in said


def test_an_error_of_a_schedule_s_own_code_names_the_schedule(plugin, tmp_path):
    (tmp_path / "parts.py").write_text(
        "from recipe.schedules import LR_SCHEDULES, Linear\n"
        '@LR_SCHEDULES.register("mine", label="Mine")\n'
        "class Mine(Linear):\n"
        '    "A schedule."\n'
        "    @classmethod\n"
        "    def problems(cls, config):\n"
        "        return 1 // 0\n"
    )
    with pytest.raises(ZeroDivisionError) as raised:
        load([plugin, "--lr_schedule=mine"])
    assert raised.value.__notes__ == ["problems() of lr_schedule=mine failed."]


def test_options_that_are_derived_from_each_other_are_named(plugin, tmp_path):
    (tmp_path / "parts.py").write_text(FAILING.format(**SOUND | {"first": "config.second"}))
    with pytest.raises(RecursionError) as raised:
        load([plugin, "--normalization=mine"])
    assert str(raised.value) == (
        "the option 'first' of normalization=mine is derived from itself: first -> second -> first"
    )
    assert load([plugin, "--normalization=mine", "--second=4"]).model.first == 4


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ({"problems": "['x']"}, "problems() must yield Problem(keys, message), not ['x']"),
        ({"idle": "'x'"}, "idle() must yield Problem(keys, message), not ['x']"),
    ],
)
def test_what_is_no_problem_is_refused(plugin, tmp_path, failing, message):
    (tmp_path / "parts.py").write_text(FAILING.format(**SOUND | failing))
    with pytest.raises(TypeError) as raised:
        load([plugin, "--normalization=mine"])
    assert str(raised.value) == message
    assert raised.value.__notes__[0].endswith("() of normalization=mine failed.")


def test_a_part_that_reads_what_it_does_not_declare_is_told(registered):
    with pytest.raises(AttributeError, match="no part of this layer has the option 'wave_length'"):
        POSITIONS["wave"](tiny_layer(position_encoding="rope"))


# What the parts compute


VARIANTS = {
    "wave": {"position_encoding": "wave", "wave_length": 9.0},
    "wave by layer": {"position_encoding": "wave+rope", "wave_height": 0.9},
    "swish": {"activation": "swish", "swish_start": 0.3},
    "swish gate": {"ffn_type": "glu", "activation": "gelu+swish", "swish_start": 2.0},
    "power": {"normalization": "power", "norm_power": 3.0},
    "power by layer": {"normalization": "power+layernorm", "norm_eps": "0.1+1e-5", "qk_norm": True},
}
every_variant = pytest.mark.parametrize("keys", one_in(2, VARIANTS))


@every_variant
def test_they_keep_the_laws_of_every_model(registered, keys, tmp_path):
    contract.test_shapes_and_loss(keys)
    contract.test_causal_at_every_position(keys)
    contract.test_every_parameter_learns(keys)
    contract.test_cost_equals_the_counter(keys, contract.T)
    contract.test_cache_equals_no_cache(keys)
    contract.test_backends_agree(keys)
    contract.test_save_and_load(keys, tmp_path)


@pytest.mark.parametrize(
    ("keys", "key", "value"),
    [
        ({"position_encoding": "wave"}, "wave_length", 5.0),
        ({"position_encoding": "wave"}, "wave_height", 1.5),
        ({"activation": "swish"}, "swish_start", 3.0),
        ({"normalization": "power"}, "norm_power", 4.0),
        ({"normalization": "power"}, "norm_eps", 1.0),
    ],
)
def test_no_key_is_ignored(registered, keys, key, value):
    plain, changed = tiny_model(**keys), tiny_model(**keys, **{key: value})
    assert not torch.allclose(plain(tokens(16)), changed(tokens(16)), atol=1e-4)


def test_a_norm_has_its_options_wherever_it_is_made(registered):
    model = GPT(tiny_config(normalization="power", norm_power="2+3", norm_position="sandwich"))
    powers = {
        name: module.power for name, module in model.named_modules() if hasattr(module, "power")
    }
    assert len(powers) == 2 * 4 + 1
    for name, power in powers.items():
        assert power == (2.0 if name.startswith("blocks.0.") else 3.0), name


def test_a_norm_by_its_formula(registered):
    norm = NORMS["power"](8, tiny_layer(normalization="power", norm_power=3.0, norm_eps=0.5))
    x = torch.randn(4, 8)
    expected = x / ((x.abs() ** 3).mean(-1, keepdim=True) + 0.5) ** (1 / 3)
    assert_close(norm(x), expected, 1e-6)


def test_a_parameter_of_an_activation_is_trained_without_decay(registered):
    model = GPT(tiny_config(activation="swish", swish_start=0.3))
    multiples = [block.ffn.activation.multiple for block in model.blocks]
    assert [multiple.item() for multiple in multiples] == pytest.approx([0.3, 0.3])
    assert model.num_parameters() == GPT(tiny_config()).num_parameters() + 2
    plain = next(g for g in parameter_groups(model, weight_decay=0.1) if g["weight_decay"] == 0)
    assert {id(multiple) for multiple in multiples} <= {id(p) for p in plain["params"]}


# In runs


WAVE = ["--position_encoding=wave", "--wave_length=7", "--wave_height=0.25"]


def saved_run(tmp_path: Path, plugin: str, *flags: str) -> list[str]:
    """Save a run that has the plugin's parts, which are unknown again; the flags that resume it."""
    with own_parts.forgotten():
        save_run(tmp_path / "out" / "run", flags=[plugin, *flags])
    return [f"--out_dir={tmp_path / 'out'}", "--resume=run"]


def test_a_new_key_of_the_architecture_is_refused_on_resume_with_another_value(plugin, tmp_path):
    """No list anywhere has the key: its role says that it is fixed."""
    resume = saved_run(tmp_path, plugin, *WAVE)
    with pytest.raises(ConfigError) as refused:
        find_start(read([*resume, plugin, "--wave_length=9"]))
    assert [problem.message for problem in refused.value.problems] == [
        "--wave_length: wave_length=9.0, but the run to resume has wave_length=7.0; drop it, or "
        "start a new run without --resume."
    ]


@pytest.mark.parametrize("flags", [[], ["--wave_length=7"], WAVE])
def test_it_goes_on_with_the_same_or_none(plugin, tmp_path, flags):
    resume = saved_run(tmp_path, plugin, *WAVE)
    settings = find_start(read([*resume, plugin, *flags])).settings
    assert (settings.model.wave_length, settings.model.wave_height) == (7.0, 0.25)


def test_auto_passes_by_a_run_with_another_value(plugin, tmp_path):
    saved_run(tmp_path, plugin, *WAVE)
    where = [f"--out_dir={tmp_path / 'out'}", "--resume=auto", plugin]
    assert find_start(read([*where, *WAVE])).checkpoint is not None
    assert find_start(read([*where, *WAVE[:1], "--wave_length=9"])).checkpoint is None


def test_how_it_is_computed_may_change_on_resume(plugin, tmp_path):
    resume = saved_run(tmp_path, plugin, "--attention_backend=chunked")
    start = find_start(read([*resume, plugin, "--chunk_size=3"]))
    assert start.settings.model.chunk_size == 3
    assert "chunk_size: 64 -> 3" in start.notes


def test_a_key_of_another_part_is_refused_on_resume(plugin, tmp_path):
    resume = saved_run(tmp_path, plugin, *WAVE)
    with pytest.raises(ConfigError, match="norm_power=3 belongs to normalization=power"):
        find_start(read([*resume, plugin, "--norm_power=3"]))


def test_without_the_plugin_it_is_told_where_the_parts_are(plugin, tmp_path):
    resume = saved_run(tmp_path, plugin, *WAVE)
    for use in (
        lambda: find_start(read(resume)),
        lambda: load_settings(tmp_path / "out" / "run" / "checkpoints" / "step_00000001"),
    ):
        with pytest.raises(UserError) as refused:
            use()
        assert "was trained with custom parts" in str(refused.value)
        assert "position_encoding='wave'" in str(refused.value)
        said = r"Review \S+/plugins/parts\.py, then allow it with --plugins=saved\.$"
        assert re.search(said, str(refused.value))


def test_saved_settings_name_the_key_that_is_unknown(plugin):
    with own_parts.forgotten():
        saved = load([plugin, *WAVE]).to_dict()
        assert settings_from_dict(saved).to_dict() == saved
    with pytest.raises(ConfigError, match="saved settings: unknown key 'wave_length'"):
        settings_from_dict(saved)


def test_a_run_logs_and_restores_them(plugin, tmp_path):
    """Trained, resumed from its own copy of the plugin, and trained on."""
    flags = tiny_run_flags(write_tiny_dataset(tmp_path / "data"))
    where = [f"--out_dir={tmp_path / 'out'}", *flags]
    parts = [*WAVE, "--activation=swish", "--normalization=power", "--norm_power=3"]
    with own_parts.forgotten():
        train.main([*where, plugin, *parts, "--run_name=run"])
    run = tmp_path / "out" / "run"
    log = json.loads((run / "run.json").read_text())
    wanted = {"wave_length": 7.0, "wave_height": 0.25, "swish_start": 1.0, "norm_power": 3.0}
    assert {key: log["config"][key] for key in wanted} == wanted
    assert "chunk_size" not in log["config"]
    defaults = load_run(run).defaults
    assert {"swish_start", "norm_eps", "ffn_hidden"} <= defaults
    assert not defaults & {"wave_length", "norm_power", "n_layer", "bias", "learning_rate"}
    assert log["architecture"]["name"].endswith("-Length7-WaveHeight0.25-P3-NoBias")
    [checkpoint] = run.glob("checkpoints/step_*3")
    copy = checkpoint / "plugins" / "parts.py"
    again = [flag for flag in where if not flag.startswith("--max_iters")]
    with own_parts.forgotten():
        train.main([*again, "--resume=run", "--max_iters=4", f"--plugins={copy}"])
    log = json.loads((run / "run.json").read_text())
    assert {key: log["config"][key] for key in wanted} == wanted
    assert log["checkpoints"][-1]["step"] == 4
    with pytest.raises(
        ConfigError, match=r"norm_power=2.0, but the run to resume has norm_power=3"
    ):
        train.main([*again, "--resume=run", "--max_iters=5", plugin, "--norm_power=2"])
