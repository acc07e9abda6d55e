"""The other commands; what is asked; secrets; what is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cloud import runpod_deploy
from cloud.package import Contents, in_project, make_package, project_files
from cloud.redaction import Redactor, for_pod, read_secrets
from cloud.request import Request, read_request
from cloud.start_command import start_command, start_script
from errors import ConfigError, UserError
from tests.cloud.conftest import Cloud
from tests.cloud.fake_runpod import KEY, Fault, Rented, script_of
from tests.cloud.stub_pod import StubPod
from tests.prepared import REPOSITORY


def rent(cloud: Cloud, name: str) -> Rented:
    """A pod that somebody left."""
    env = {"NANOARCH_SECONDS": "9999999", "NANOARCH_DEADLINE": "9e99"}
    pod = Rented(
        id=f"left{len(cloud.world.rented)}",
        name=name,
        gpu="NVIDIA A100-SXM4-80GB",
        region="EU-RO-1",
        rate=1.74,
        begun=cloud.clock.time - 300,
        env=env,
        command="",
        disk_gb=20,
        volume=None,
        spot=False,
    )
    pod.inside = StubPod(cloud.world, pod)
    cloud.world.rented.append(pod)
    return pod


def leave_deployment(cloud: Cloud, identity: str, run: str) -> None:
    """What a deployer that was killed leaves here."""
    folder = cloud.folder / "out/.cloud" / identity
    folder.mkdir(parents=True)
    about = {"deployment": identity, "run": run, "process": 1, "begun": "2026-01-01T00:00:00"}
    (folder / "deployment.json").write_text(json.dumps(about))


@pytest.fixture
def orphan(cloud: Cloud) -> Rented:
    """A pod of a deployer of this folder that was killed, beside others."""
    leave_deployment(cloud, "aaaaaaaaaa", "tried")
    rent(cloud, "my own pod")
    rent(cloud, "nanoarch-bbbbbbbbbb-1")
    return rent(cloud, "nanoarch-aaaaaaaaaa-2")


def test_status_lists_pods_and_the_account(orphan, cloud: Cloud):
    lines = cloud.command("status").lines
    assert [line.split()[1] for line in lines[:-1]] == [
        "nanoarch-bbbbbbbbbb-1",
        "nanoarch-aaaaaaaaaa-2",
    ]
    told = "RUNNING  NVIDIA A100-SXM4-80GB  $1.74/h  up 5:00  run tried: NOT WATCHED"
    assert told in lines[1]
    assert lines[0].endswith("not started from this directory")
    assert lines[-1].startswith("account: $99.")


def test_stop_removes_the_pods_of_a_run_and_no_others(orphan, cloud: Cloud):
    cloud.world.faults += [Fault("terminate", "lie"), Fault("pods", "500", 2)]
    ended = cloud.command("stop", "tried")
    assert (ended.status, ended.last) == (0, "removed 1 pod; none is left")
    assert [pod.name for pod in cloud.world.alive] == ["my own pod", "nanoarch-bbbbbbbbbb-1"]


def test_stop_of_an_unknown_run_names_those_that_there_are(orphan, cloud: Cloud):
    ended = cloud.command("stop", "tired")
    assert ended.status == 1
    assert ended.last == "no deployment 'tired' in this directory; known: tried."


def test_sweep_orphans_leaves_what_others_may_watch(orphan, cloud: Cloud):
    ended = cloud.command("sweep-orphans")
    assert ended.status == 0
    assert (
        "nanoarch-bbbbbbbbbb-1  not started from this directory; --all removes it, too"
        in ended.text
    )
    assert [pod.name for pod in cloud.world.alive] == ["my own pod", "nanoarch-bbbbbbbbbb-1"]
    assert cloud.command("sweep-orphans", "--all").status == 0
    assert [pod.name for pod in cloud.world.alive] == ["my own pod"]


def test_a_pod_of_somebody_with_a_similar_name_is_no_pod_of_ours(cloud: Cloud):
    rent(cloud, "nanoarch-dev-1")
    assert cloud.command("sweep-orphans", "--all").last == "no pod is left"
    assert cloud.command("status").lines[0] == "no pods of this project"
    assert len(cloud.world.alive) == 1


@pytest.mark.parametrize("kind", ["403", "validation", "drop"])
def test_a_removal_that_is_rejected_is_tried_again(kind, orphan, cloud: Cloud):
    second = rent(cloud, "nanoarch-aaaaaaaaaa-3")
    cloud.world.faults.append(Fault("terminate", kind, 3))
    ended = cloud.command("stop", "tried")
    assert (ended.status, ended.last) == (0, "removed 2 pods; none is left")
    assert {orphan.removed_by, second.removed_by} == {"the deployer"}


def test_a_list_that_never_comes_is_told_as_pods_left(orphan, cloud: Cloud):
    cloud.world.faults.append(Fault("pods", "500", 9999))
    ended = cloud.command("stop", "tried")
    assert (ended.status, "RunPod does not answer" in ended.last) == (4, True)


def test_a_process_that_ends_meanwhile_is_no_error(orphan, cloud: Cloud, monkeypatch):
    lives = iter((True, True, False))
    monkeypatch.setattr("cloud.other_commands.is_live", lambda about: next(lives, False))
    monkeypatch.setattr("os.kill", lambda *about: (_ for _ in ()).throw(ProcessLookupError()))
    assert cloud.command("stop", "tried").last == "removed 1 pod; none is left"


def test_a_new_deployment_tells_of_orphans(orphan, cloud: Cloud):
    ended = cloud.deploy("--dry_run")
    assert (
        "WARNING: nothing watches nanoarch-aaaaaaaaaa-2; run python -m cloud.runpod_deploy"
        in ended.text
    )


def test_sweep_orphans_leaves_what_is_watched(cloud: Cloud):
    ended = []
    cloud.after(600, lambda: ended.append(cloud.command("sweep-orphans")))
    assert cloud.deploy().status == 0
    assert ended[0].last == "no pod is left"
    assert len(cloud.world.rented) == 1


def test_pods_that_cannot_be_removed_are_told(orphan, cloud: Cloud):
    cloud.world.faults.append(Fault("terminate", "lie", 999))
    ended = cloud.command("stop", "tried")
    assert (ended.status, ended.last) == (
        4,
        "1 pod still there: nanoarch-aaaaaaaaaa-2; check RunPod's console",
    )


def test_cost_sums_the_deployments(cloud: Cloud):
    assert cloud.command("cost").last == "0 deployments, $0.00"
    cloud.deploy()
    cloud.deploy("--max_cost=5")
    ended = cloud.command("cost")
    assert len(ended.lines) == 3
    assert ended.last == f"2 deployments, ${cloud.world.spent():.2f}"


def test_a_cost_log_that_was_cut_short_is_read(cloud: Cloud):
    cloud.deploy()
    path = cloud.folder / "metrics/cost_log.csv"
    path.write_text(path.read_text() + "2026-01-01T00:00:00Z,12\n")
    ended = cloud.command("cost")
    assert ended.lines[-2] == "1 row of metrics/cost_log.csv cannot be read"
    assert ended.last.startswith("1 deployment, $0.2")


def test_output_that_nobody_reads_does_not_change_the_exit_status(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        runpod_deploy._print("x")
        nobody.flush()  # as at the exit, where an error would be an exit status


def test_a_misspelled_command_is_told(cloud: Cloud):
    ended = cloud.command("stat")
    assert (ended.status, "unknown command 'stat'; did you mean 'status'?" in ended.last) == (
        1,
        True,
    )


def test_help_needs_no_key(cloud: Cloud, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert "--max_cost" in cloud.command("--help").text


# What is asked


def test_options_of_the_cloud_are_told_from_those_of_training():
    request = read_request(["a.py", "--max_cost=5", "--n_layer=3", "--volumes=A-1=v1,B-2=v2"])
    assert request.argv == ("a.py", "--n_layer=3")
    assert (request.max_cost, request.volume("B-2"), request.volume("C-3")) == (5.0, "v2", None)
    assert Request(argv=()) == read_request([])


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (["--max_cost=0"], "must be a number above 0 and at most 100,000"),
        (["--max_cost=nan"], "must be a number above 0"),
        (["--max_cost=inf"], "must be a number above 0"),
        (["--max_hours=-1"], "must be a number above 0 and at most 10,000"),
        (["--gpu_count=1.5"], "must be a whole number above 0 and at most 8"),
        (["--mfu=2"], "must be a number above 0 and at most 1"),
        (["--volumes=EU-RO-1"], "must be DATA_CENTER=ID, separated by commas"),
        (["--regions=EU RO"], "must be names of data centers"),
        (['--image=a"b'], "must be the name of a container image"),
        (["--max_wait=3"], "has no effect without --wait"),
        (["--max_costs=5"], "unknown option --max_costs; did you mean --max_cost?"),
        (["--volumes=A=b,A=c"], "has A more than once"),
        (["--secrets=nowhere.env"], "is not a file"),
        (["--cuda=new"], "must be versions such as 13.0"),
        (["--disk=0"], "must be a whole number above 0"),
        (["--community", "--volumes=A=b"], "cannot be combined with --community"),
        (["--community", "--regions=A"], "cannot be combined with --community"),
        (["--regions=A,C", "--volumes=A=b"], "has no volume in C"),
    ],
)
def test_options_that_cannot_be_are_refused(flag, said):
    with pytest.raises(ConfigError, match=said):
        read_request(flag)


def test_every_problem_is_told_at_once(cloud: Cloud):
    ended = cloud.deploy("--max_cost=x", "--max_hours=y")
    assert (ended.status, ended.lines[0]) == (2, "2 config errors:")


# Secrets


def test_secrets_are_hidden_as_json_and_addresses_spell_them():
    redact = Redactor(['quo"ted/secret'])
    for text in ('quo"ted/secret', 'quo\\"ted/secret', "quo%22ted/secret"):
        assert redact(f"a {text} b") == "a [secret] b"


@pytest.mark.parametrize("secret", ['a"b\\c{}#=', "pässwörd $HOME `x`", "'quoted'x"])
def test_secrets_reach_the_pod_as_they_are(secret, cloud: Cloud):
    (cloud.folder / "secrets.env").write_text(f"MY_TOKEN={secret}\n")
    ended = cloud.deploy()
    assert ended.status == 0
    assert cloud.world.rented[0].env["MY_TOKEN"] == secret
    assert secret not in ended.text
    assert KEY not in cloud.world.rented[0].env.values()


def test_a_file_of_secrets_that_others_may_read_is_refused(cloud: Cloud):
    (cloud.folder / "secrets.env").chmod(0o644)
    ended = cloud.deploy()
    assert (ended.status, ended.last) == (
        1,
        "other users may read secrets.env, which holds secrets; chmod 600 secrets.env",
    )


def test_a_line_that_cannot_be_read_is_told_without_its_value(tmp_path):
    path = tmp_path / "secrets.env"
    path.write_text("# fine\nFINE=1234567\nhidden-value\n")
    path.chmod(0o600)
    with pytest.raises(UserError, match="line 3 is not NAME=value") as error:
        read_secrets(path, {})
    assert "hidden" not in str(error.value)


def test_the_environment_wins_and_runpods_own_stay_here(tmp_path):
    path = tmp_path / "secrets.env"
    path.write_text("RUNPOD_API_KEY=from-file\nexport WANDB_API_KEY='quoted value'\nEMPTY=\n")
    path.chmod(0o600)
    secrets = read_secrets(path, {"RUNPOD_API_KEY": "from-environment", "OTHER": "x"})
    assert secrets == {"RUNPOD_API_KEY": "from-environment", "WANDB_API_KEY": "quoted value"}
    assert for_pod(secrets) == {"WANDB_API_KEY": "quoted value"}


def test_no_key_is_an_error_that_says_how(cloud: Cloud, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert cloud.deploy().last.startswith("no RunPod API key; set RUNPOD_API_KEY, or copy")


def test_the_start_command_is_as_long_as_documented():
    document = (REPOSITORY / "docs/cloud.md").read_text()
    assert f"a start command of {round(len(start_command()), -3):,} characters" in document


def test_the_switches_start_before_the_server():
    script = start_script()
    places = [
        script.index(text) for text in ("sleep 1; done\n", "mkdir", "dead_man; sleep", "serve;")
    ]
    assert places == sorted(places)


def test_the_start_command_is_the_same_for_all_and_needs_no_quoting(cloud: Cloud):
    cloud.deploy()
    command = cloud.world.rented[0].command
    assert command == start_command()
    assert not set(command.removeprefix("bash -c '").removesuffix("'")) & set("'\"\\$`\n")
    assert script_of(command) == start_script()


def test_the_pods_log_is_shown_without_secrets(cloud: Cloud, monkeypatch):
    monkeypatch.setattr(
        StubPod, "_log", lambda self, asked, body: (200, f"key {KEY}\n".encode() * 3)
    )
    ended = cloud.deploy()
    assert "key [secret]" in ended.text
    assert KEY not in ended.text


# What is sent


def test_the_package_has_the_commit_without_remotes_and_no_secret(tmp_path):
    files = project_files([], Redactor())
    package = make_package(Contents(files, None, {}), tmp_path / "package.tar.gz")
    with tarfile.open(package.path) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    code = tmp_path / "tree/code"
    assert (code / "train.py").read_bytes() == (REPOSITORY / "train.py").read_bytes()

    def git(folder: Path, *arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert git(code, "rev-parse", "HEAD") == git(REPOSITORY, "rev-parse", "HEAD")
    changed = ("status", "--porcelain", "--untracked-files=no")
    assert git(code, *changed) == git(REPOSITORY, *changed)
    assert git(code, "remote") == ""
    objects = git(code, "cat-file", "--batch-all-objects", "--batch-check").split("\n")
    assert {line.split()[1] for line in objects if line} == {"commit", "tree"}
    settings = (code / ".git/config").read_text()
    assert str(REPOSITORY) not in settings
    assert not (code / ".git/hooks").exists()
    assert not [name for name in files if name.name.endswith(".env")]


def test_a_file_that_holds_a_secret_is_not_sent():
    secret = " ".join(("Train", "the architecture described by config"))
    with pytest.raises(UserError, match=r"^train.py contains a secret"):
        project_files([], Redactor([secret]))


@pytest.mark.parametrize("name", ["a.env", ".env.local", "id_rsa", "server.pem", ".netrc"])
def test_files_that_may_hold_secrets_are_not_sent(name, tmp_path, monkeypatch):
    monkeypatch.setattr("cloud.package.PROJECT", tmp_path)
    (tmp_path / "train.py").write_text("pass")
    (tmp_path / name).write_text("x")
    os.symlink(tmp_path / name, tmp_path / "link.py")
    assert list(map(str, project_files([tmp_path], Redactor()))) == ["train.py"]


def test_a_folder_of_large_files_is_not_sent(monkeypatch):
    monkeypatch.setattr("cloud.package.LARGEST_CODE", 1000)
    with pytest.raises(UserError, match="bytes, but at most 1,000 are sent; add files that are"):
        project_files([], Redactor())


def test_files_elsewhere_are_refused(tmp_path):
    with pytest.raises(UserError, match="only files there are sent"):
        in_project(tmp_path / "a.py")


def test_the_sdk_is_imported_when_it_is_needed():
    code = "import sys, cloud.runpod_deploy; sys.exit('runpod' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_only_one_module_knows_the_sdk():
    importing = [
        path.name
        for path in (REPOSITORY / "cloud").glob("*.py")
        if "import runpod\n" in path.read_text() or "from runpod" in path.read_text()
    ]
    assert importing == ["runpod_api.py"]


def test_an_sdk_of_another_version_is_refused(monkeypatch, cloud: Cloud):
    monkeypatch.setattr("runpod.__version__", "2.0.1")
    assert cloud.deploy().last.startswith("runpod 2.0.1 is installed, and its API differs")
