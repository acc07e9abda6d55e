"""Shell completion: what bash offers for a command line, and what zsh and fish can read."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import nanoarch.__main__
from components.activations import ACTIVATIONS
from configurator import key_table
from nanoarch import completion
from nanoarch.commands import COMMANDS
from recipe.optimizers import OPTIMIZERS
from tests.own_parts import forgotten
from tests.prepared import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

ASK = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
{function}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def script_of(shell: str, folder: Path, *flags: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        path = folder / f"nanoarch.{shell}"
        written: list[str] = []
        patch.setattr("builtins.print", lambda text: written.append(text))
        completion.main([shell, *flags])
    path.write_text("\n".join(written) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script_of("bash", tmp_path_factory.mktemp("bash"))


@pytest.fixture
def offered(bash: Path, tmp_path: Path):
    """What bash offers for a line, with the cursor at its end."""

    def ask(line: str, *, split: bool = True, script: Path = bash) -> list[str]:
        words = line.split(" ")
        if split:  # as bash does, in whose COMP_WORDBREAKS = is
            words = [part for word in words for part in re.split("(=)", word)]
            words = [word for word in words[:-1] if word] + words[-1:]
            if words[-1] == "" and words[-2] == "=":
                words.pop()
        function = "_nanoarch" if words[0] == "nanoarch" else "_nanoarch_python"
        quoted = " ".join(f"'{word}'" for word in words)
        code = ASK.format(script=script, words=quoted, function=function)
        done = subprocess.run(
            ["bash", "--norc", "-c", code], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines() if done.stdout != "\n" else []

    return ask


def test_commands(offered) -> None:
    assert offered("nanoarch ") == list(COMMANDS)
    assert offered("nanoarch s") == ["sweep", "sample"]
    assert offered("nanoarch completion ") == ["bash", "zsh", "fish"]


def test_every_key_is_offered(offered) -> None:
    keys = {f"--{key}=" for key in key_table()}
    assert keys <= set(offered("nanoarch train --"))
    assert keys <= set(offered("nanoarch sweep --"))
    assert offered("nanoarch train --warm") == ["--warmup_iters="]
    assert offered("nanoarch train --dry") == ["--dry_run"]


def test_the_flags_of_each_command(offered) -> None:
    assert {"--vary=", "--until_sure", "--learning_rate="} <= set(offered("nanoarch sweep --"))
    assert offered("nanoarch sample --top") == ["--top_k=", "--top_p="]
    assert offered("nanoarch compare --p") == ["--plot=", "--plot_tuning="]
    assert offered("nanoarch export --") == [
        *("--help", "--out_dir=", "--family=", "--plugins=", "--download", "--base=", "--peft")
    ]


@pytest.mark.parametrize("way", ["--optimizer=", "--optimizer "])
def test_values_of_a_key(offered, way: str) -> None:
    assert offered(f"nanoarch train {way}") == list(OPTIMIZERS.names)
    assert offered(f"nanoarch train {way}ad") == ["adamw", "adafactor"]
    assert offered(f"nanoarch sweep {way}mu") == ["muon"]
    assert offered("nanoarch sample --device=c") == ["cpu", "cuda"]
    assert offered("nanoarch compare --format=j") == ["json"]


def test_values_where_an_equals_sign_ends_no_word(offered) -> None:
    line = "nanoarch train --optimizer=ad"
    assert offered(line, split=False) == ["--optimizer=adamw", "--optimizer=adafactor"]


def test_booleans_numbers_and_none(offered) -> None:
    assert offered("nanoarch train --qk_norm=") == ["true", "false"]
    assert offered("nanoarch train --attention_bias=") == ["true", "false", "none"]
    assert offered("nanoarch train --learning_rate=") == []


def test_values_in_a_list_or_a_pattern(offered) -> None:
    assert offered("nanoarch train --ffn_type=swiglu+mo") == ["swiglu+moe"]
    assert offered("nanoarch train --log_to=csv,ten") == ["csv,tensorboard"]
    assert offered("nanoarch sweep --vary optim") == ["optimizer="]
    assert offered("nanoarch sweep --vary=optim") == ["optimizer="]
    assert offered("nanoarch sweep --vary optimizer=adamw,li") == ["adamw,lion"]


def test_datasets_and_files(offered, tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    assert offered("nanoarch train --dataset=shakespeare_c") == ["shakespeare_char"]
    assert "python_stdlib" in offered("nanoarch train --dataset=p")
    assert "prepared" in offered("nanoarch train --dataset=p")
    assert offered("nanoarch train --out_dir=pre") == ["prepared"]


def test_config_files(offered, tmp_path: Path) -> None:
    for name in ("my run.py", "my.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    assert offered("nanoarch train my") == ["my run.py"]
    assert offered("nanoarch train config/arch_hy") == ["config/arch_hybrid.py"]
    assert offered("nanoarch compare my") == ["my run.py", "my.txt"]


def test_scripts_are_completed_like_the_commands(offered) -> None:
    assert offered("python train.py --warm") == ["--warmup_iters="]
    assert offered("python -X dev ../sample.py --top_k=5 --top") == ["--top_k=", "--top_p="]
    assert offered("python3 sweep.py --optimizer=ad") == ["adamw", "adafactor"]
    assert offered("python compare_architectures.py --form") == ["--format="]
    assert offered("python other.py --warm") == []


def test_the_completion_that_python_had_stays_for_other_scripts(bash: Path) -> None:
    code = f"""
    before() {{ COMPREPLY=(before); }}
    complete -F before python
    source {bash}; source {bash}
    COMP_WORDS=(python other.py --w) COMP_CWORD=2
    _nanoarch_python
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "before\n"


def test_plugins_add_their_keys_and_parts(offered, tmp_path: Path) -> None:
    plugin = tmp_path / "cube.py"
    plugin.write_text(
        "from components.activations import ACTIVATIONS, Activation\n"
        "from options import option\n"
        '@ACTIVATIONS.register("cube", label="Cube")\n'
        "class Cube(Activation):\n"
        '    """x ** 3."""\n'
        "    class Options:\n"
        '        cube_scale: float = option(1.0, "what it is multiplied by")\n',
        encoding="utf-8",
    )
    with forgotten():
        script = script_of("bash", tmp_path, f"--plugins={plugin}")
    assert offered("nanoarch train --activation=cu", script=script) == ["cube"]
    assert offered("nanoarch train --cube", script=script) == ["--cube_scale="]
    assert offered("nanoarch train --cube") == []
    assert "cube" not in ACTIVATIONS.names


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "-n")])
def test_the_shell_reads_its_script(shell: str, check: str, tmp_path: Path) -> None:
    path = script_of(shell, tmp_path)
    assert str(REPOSITORY) in path.read_text(encoding="utf-8")
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, check, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_offers_keys_values_and_datasets(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs fish")
    script = script_of("fish", tmp_path)

    def ask(line: str) -> list[str]:
        code = f"source {script}; complete -C '{line}'"
        done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True)
        return [row.partition("\t")[0] for row in done.stdout.splitlines()]

    assert set(ask("nanoarch ")) >= set(COMMANDS)
    assert ask("nanoarch train --warm") == ["--warmup_iters"]
    assert ask("nanoarch train --optimizer=ad") == ["--optimizer=adafactor", "--optimizer=adamw"]
    assert "--dataset=shakespeare_char" in ask("nanoarch train --dataset=shake")


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    nanoarch.__main__.main(["completion", "zsh"])
    assert capsys.readouterr().out.startswith("#compdef nanoarch\n")
