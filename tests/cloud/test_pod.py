"""What runs in a pod, by itself: restarts, full disks, its clocks, requests it must refuse."""

from __future__ import annotations

import ast
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cloud.pod import dead_man, job, listing, removal, supervisor
from cloud.pod.carried import place_carried
from cloud.pod.dead_man import Remaining
from cloud.pod.job import Job
from cloud.pod.listing import Listing
from cloud.pod.place import Place, write
from cloud.pod.server import PodServer
from cloud.pod.supervisor import Supervisor
from cloud.start_command import start_script
from tests.prepared import REPOSITORY


def environment(folder: Path, **changed: str) -> dict[str, str]:
    return {
        "NANOARCH_RUN": "tried",
        "NANOARCH_RESULTS": "tried",
        "NANOARCH_DEPLOYMENT": "abc",
        "NANOARCH_TOKEN": "token",
        "NANOARCH_PORT": "0",
        "NANOARCH_HOME": str(folder / "volume"),
        "NANOARCH_CODE": str(folder / "code"),
        "NANOARCH_SECONDS": "1000",
        "NANOARCH_DEADLINE": str(time.time() + 1000),
        "NANOARCH_DOLLARS": "1",
        "RUNPOD_POD_ID": "pod1",
        **changed,
    }


@pytest.fixture
def pod(tmp_path: Path) -> Place:
    made = Place(environment(tmp_path))
    (tmp_path / "code/tree/code").mkdir(parents=True)
    return made


def new_job(pod: Place) -> Job:
    """The job of a server that starts."""
    return Job(pod, Listing(pod.results))


def wait_for(job: Job) -> None:
    for _ in range(2000):
        if job.over:
            return
        time.sleep(0.01)
    pytest.fail(f"the job is not over, but at {job.phase}")


STEPS = [("setup", "echo set up"), ("smoke", ["true"]), ("train", ["echo", "trained"])]


@pytest.fixture
def unpacked(monkeypatch) -> None:
    monkeypatch.setattr(Job, "_unpack", lambda self: None)


def test_only_the_standard_library_is_imported():
    for path in (REPOSITORY / "cloud/pod").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                own = name.startswith("cloud.pod.")
                assert own or name.partition(".")[0] in sys.stdlib_module_names, (path, name)


# The job


def test_a_job_runs_its_steps_and_leaves_a_done_marker(pod, unpacked):
    ran = new_job(pod)
    ran.start(STEPS)
    wait_for(ran)
    log = Path(pod.path("pod.log")).read_text(encoding="utf-8").split()
    assert log == ["[setup]", "set", "up", "[smoke]", "[train]", "trained"]
    done = json.loads(Path(pod.home, "done.json").read_text(encoding="utf-8"))
    assert (done["phase"], done["exit_code"], done["deployment"]) == ("done", 0, "abc")


@pytest.mark.parametrize(("step", "status"), [("setup", 3), ("smoke", 2), ("train", 1)])
def test_a_step_that_fails_ends_the_job(step, status, pod, unpacked):
    ran = new_job(pod)
    ran.start([(name, f"exit {status}" if name == step else "true") for name, _ in STEPS])
    wait_for(ran)
    assert (ran.phase, ran.exit_code) == ("failed", status)
    assert ran.error == f"{step} ended with exit status {status}"


def test_a_container_that_restarts_does_not_train_again(pod, unpacked):
    ran = new_job(pod)
    ran.start(STEPS)
    wait_for(ran)
    again = new_job(pod)
    assert (again.phase, again.exit_code, again.begun) == ("done", 0, False)


def test_a_container_that_restarts_continues_the_job(pod, unpacked):
    Path(pod.path("started.json")).write_text(json.dumps({"steps": STEPS}), encoding="utf-8")
    again = new_job(pod)
    wait_for(again)
    assert again.phase == "done"


def test_a_server_that_restarts_ends_the_training_that_outlived_it(pod, unpacked):
    """Else two processes would train in one run directory."""
    new_job(pod).start([("train", "exec sleep 60")])
    path = Path(pod.path("step.json"))
    for _ in range(500):
        if path.exists():
            break
        time.sleep(0.01)
    first = psutil.Process(json.loads(path.read_text(encoding="utf-8"))["process"])
    again = new_job(pod)
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    again.stop()
    wait_for(again)


def test_another_process_with_the_id_of_a_step_is_left_alone(pod, unpacked):
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        write(pod.path("step.json"), json.dumps({"process": other.pid}))
        Path(pod.path("started.json")).write_text(json.dumps({"steps": STEPS}), encoding="utf-8")
        wait_for(new_job(pod))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_pod_that_failed_does_not_end_the_next_one_on_its_volume(pod, unpacked):
    ran = new_job(pod)
    ran.start([("smoke", "exit 1")])
    wait_for(ran)
    assert new_job(pod).phase == "failed"  # it does for this pod
    Path(pod.path("started.json")).unlink()
    pod.pod = "pod2"
    assert new_job(pod).phase == "waiting"


def test_the_done_marker_of_another_deployment_does_not_count(pod, unpacked):
    Path(pod.home, "done.json").write_text(
        json.dumps({"deployment": "other", "phase": "done", "exit_code": 0}), encoding="utf-8"
    )
    assert new_job(pod).phase == "waiting"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"deployment": "abc", "pod": "pod1"}'])
def test_a_damaged_done_marker_does_not_stop_the_server(text, pod, unpacked):
    Path(pod.home, "done.json").write_text(text, encoding="utf-8")
    assert new_job(pod).phase in ("waiting", "failed")


def test_a_full_volume_ends_only_what_needs_it(pod, unpacked, monkeypatch):
    monkeypatch.setattr(job, "write", lambda path, content: False)
    ran = new_job(pod)
    ran.start(STEPS)
    wait_for(ran)
    assert ran.phase == "done"


def test_a_full_disk_is_reported(tmp_path):
    assert write(str(tmp_path / "no/folder"), "x") is False


def test_stopping_sends_one_signal_since_a_second_would_not_save(pod, unpacked):
    ran = new_job(pod)
    count = (
        'n=0; trap "n=\\$((n+1))" TERM; touch up; for i in $(seq 10); do sleep 0.1; done; exit $n'
    )
    ran.start([("train", count)])
    while not Path(pod.path("tree/code/up")).exists():
        time.sleep(0.01)
    ran.stop()
    time.sleep(0.3)  # two signals at once would be one
    ran.stop()
    wait_for(ran)
    assert (ran.phase, ran.exit_code) == ("stopped", 1)


def test_a_job_that_is_stopped_before_it_began_is_over(pod):
    ran = new_job(pod)
    ran.stop()
    assert (ran.phase, ran.over) == ("stopped", True)
    ran.start(STEPS)
    assert ran.phase == "stopped"


# Its state


def test_the_status_has_the_last_validation_and_checkpoint(pod):
    results = Path(pod.results)
    (results / "checkpoints/step_00000020").mkdir(parents=True)
    (results / "metrics.jsonl").write_text(
        '{"kind": "eval", "iter": 10, "val_loss": 2.5}\n{"kind": "train", "iter": 12}\n{"kind": '
    )
    status = Supervisor(pod, new_job(pod)).status()
    assert (status["iter"], status["val_loss"], status["evaluated"]) == (12, 2.5, 10)
    assert status["checkpoint"] == "step_00000020"


def test_status_json_is_on_the_volume_and_follows_the_job(pod, unpacked):
    ran = new_job(pod)
    supervising = Supervisor(pod, ran)
    supervising.look()
    assert (
        json.loads(Path(pod.home, "status.json").read_text(encoding="utf-8"))["phase"] == "waiting"
    )
    ran.start(STEPS)
    wait_for(ran)
    supervising.look()
    assert json.loads(Path(pod.home, "status.json").read_text(encoding="utf-8"))["over"] is True


def test_training_is_stopped_before_the_time_is_up(tmp_path, unpacked):
    pod = Place(environment(tmp_path, NANOARCH_DEADLINE=str(time.time() + 50)))
    ran = new_job(pod)
    Supervisor(pod, ran).look()
    assert ran.phase == "stopped"


def test_a_pod_whose_results_nobody_fetches_ends(pod, unpacked, monkeypatch):
    ran = new_job(pod)
    supervising = Supervisor(pod, ran)
    ran.stop()
    supervising.look()
    assert not Path(pod.path("finish")).exists()
    monkeypatch.setattr(supervisor, "seconds_awake", lambda end=ran.over_since: end + 3601)
    supervising.look()
    assert Path(pod.path("finish")).exists()


def test_the_list_has_no_checkpoint_that_is_being_written(pod):
    checkpoints = Path(pod.results, "checkpoints")
    for name in ("step_00000020", ".tmp_1"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "model.safetensors").write_text("x")
    Path(pod.results, ".lock").write_text("1", encoding="utf-8")
    assert list(Listing(pod.results).whole()["files"]) == [
        "checkpoints/step_00000020/model.safetensors"
    ]


def test_the_digests_of_large_results_are_waited_for(pod, monkeypatch):
    monkeypatch.setattr(listing, "READING_SECONDS", 0.0)
    listed, goes_on = Listing(pod.results), threading.Event()
    monkeypatch.setattr(listed, "whole", lambda: goes_on.wait(10) and {"files": {}})
    assert listed.soon() is None
    goes_on.set()
    listed.reading.thread.join()
    assert listed.soon() == {"files": {}}


# Runs that come with the code


def leave_run(folder: Path, step: int, first: str) -> None:
    (folder / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(f"{first}\n{step}\n")
    (folder / "run.json").write_text("{}")


@pytest.mark.parametrize(
    ("there", "first", "kept"), [(50, "a", 50), (20, "a", 30), (50, "b", 30), (None, "a", 30)]
)
def test_a_run_continues_from_its_latest_state(there, first, kept, tmp_path):
    """Of the volume's and the carried one; never another run that has its name."""
    carried, results = tmp_path / "carried", tmp_path / "results"
    leave_run(carried, 30, "a")
    if there is not None:
        leave_run(results, there, first)
    place_carried(str(carried), str(results), ".before")
    assert [path.name for path in (results / "checkpoints").iterdir()] == [f"step_{kept:08d}"]
    aside = tmp_path / "results.before"
    assert aside.exists() == (there is not None and kept == 30)


def test_each_run_of_a_sweep_continues_from_its_latest_state(tmp_path):
    carried, results = tmp_path / "carried", tmp_path / "results"
    for name, here, there in (("arm-1", 10, 40), ("arm-2", 40, 10)):
        leave_run(carried / "sweep" / name, here, name)
        leave_run(results / "sweep" / name, there, name)
    (carried / "sweep/sweep.json").write_text("carried")
    (results / "sweep/sweep.json").write_text("there")
    place_carried(str(carried), str(results), ".before")
    for name in ("arm-1", "arm-2"):
        folder = results / "sweep" / name / "checkpoints"
        assert [path.name for path in folder.iterdir()] == ["step_00000040"]
    assert (results / "sweep/sweep.json").read_text() == "there"


# The clocks


def test_a_pod_ends_by_the_strictest_of_its_clocks(tmp_path, monkeypatch):
    remaining = Remaining(Place(environment(tmp_path)))
    assert 990 < remaining.seconds() <= 1000
    start = dead_man.seconds_awake()
    monkeypatch.setattr(dead_man, "seconds_awake", lambda: start + 400)
    assert 590 < remaining.seconds() <= 600
    now = time.time()
    monkeypatch.setattr(dead_man.time, "time", lambda: now + 700)
    assert 290 < remaining.seconds() <= 300
    monkeypatch.setattr(dead_man.time, "time", lambda: now - 1e6)  # the date goes back
    assert 590 < remaining.seconds() <= 600


def test_restarting_does_not_restart_the_time(tmp_path, monkeypatch):
    pod = Place(environment(tmp_path, NANOARCH_DEADLINE=str(time.time() + 1e6)))
    Remaining(pod)
    now = time.time()
    monkeypatch.setattr(dead_man.time, "time", lambda: now + 900)
    assert 90 < Remaining(pod).seconds() <= 100


def test_the_deadline_holds_even_if_the_first_start_is_forgotten(tmp_path):
    pod = Place(environment(tmp_path, NANOARCH_DEADLINE=str(time.time() + 50)))
    assert Remaining(pod).seconds() <= 50


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pod": "pod1"}', '{"pod": "pod1", "time": NaN}'])
def test_a_damaged_record_of_the_first_start_does_not_stop_the_switch(text, tmp_path):
    pod = Place(environment(tmp_path))
    Path(pod.path("first-start.json")).write_text(text, encoding="utf-8")
    assert 990 < Remaining(pod).seconds() <= 1000


def test_the_switch_waits_for_no_reply(tmp_path, monkeypatch):
    monkeypatch.setattr(removal, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(removal, "_ask", lambda place, query: time.sleep(60))
    assert removal.price_of_pod(Place(environment(tmp_path))) is None


def test_a_pod_that_costs_more_ends_sooner(tmp_path):
    remaining = Remaining(Place(environment(tmp_path)))
    remaining.shorten_to_price(36.0)  # a dollar lasts 100 seconds
    assert 90 < remaining.seconds() <= 100
    remaining.shorten_to_price(0.001)
    assert remaining.seconds() <= 100


def run_script(folder: Path, shell_seconds: int, deadline: float) -> list[str]:
    """Run the start script where Python does not start, for a few seconds; what was called."""
    tools, called = folder / "bin", folder / "called"
    tools.mkdir()
    for name, text in {
        "python3": "exit 1",
        "runpodctl": f'echo "runpodctl $@" >>{called}',
        "curl": f'echo "curl $@" >>{called}; cat >>{called}',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    own = environment(
        folder,
        NANOARCH_SHELL_SECONDS=str(shell_seconds),
        NANOARCH_SHELL_DEADLINE=f"{deadline:.0f}",
        RUNPOD_API_KEY="pod-key",
        PATH=f"{tools}:{os.environ['PATH']}",
    )
    process = subprocess.Popen(
        ["bash"], stdin=subprocess.PIPE, env=own, cwd=folder, start_new_session=True
    )
    process.stdin.write(start_script().encode())
    process.stdin.close()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if called.exists() and "header" in called.read_text():
            break
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    return called.read_text().splitlines()


@pytest.mark.parametrize("by_date", [False, True])
def test_the_shells_switch_removes_a_pod_whose_python_does_not_start(by_date, tmp_path):
    now = time.time()
    seconds, deadline = (9999, now - 1) if by_date else (0, now + 9999)
    lines = run_script(tmp_path, seconds, deadline)
    assert lines[:2] == ["runpodctl remove pod pod1", "runpodctl pod delete pod1"]
    assert '{"query": "mutation { podTerminate(input: { podId: \\"pod1\\" }) }"}' in lines[2]
    assert "pod-key" not in lines[2]  # arguments can be seen by every process
    assert lines[3] == 'header = "Authorization: Bearer pod-key"'


# Requests


@pytest.fixture
def server(pod, unpacked) -> Iterator[PodServer]:
    made = PodServer(("127.0.0.1", 0), pod)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server, method, path, token="token", body=b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, content


REQUESTS = [
    *(("GET", path) for path in ("/status", "/log", "/files", "/file?path=a&offset=0&length=1")),
    ("PUT", "/package?offset=0"),
    *(("POST", path) for path in ("/start", "/stop", "/finish")),
]


@pytest.mark.parametrize("token", ["", "wrong", "token ", "tökén"])
@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_every_request_needs_the_token(method, path, token, server):
    assert ask(server, method, path, token.encode().decode("latin-1"))[0] == 401


@pytest.mark.parametrize("path", ["../done.json", "/etc/passwd", "a/../../../done.json", "linked"])
def test_only_results_are_served(path, server, pod):
    Path(pod.results).mkdir(parents=True)
    os.symlink("/etc/passwd", Path(pod.results, "linked"))
    Path(pod.home, "done.json").write_text("{}", encoding="utf-8")
    assert ask(server, "GET", f"/file?path={path}&offset=0&length=100")[0] == 404


def test_a_damaged_package_does_not_start(server):
    ask(server, "PUT", "/package?offset=0", body=b"abc")
    order = json.dumps({"sha256": "0" * 64, "steps": STEPS}).encode()
    assert ask(server, "POST", "/start", body=order)[0] == 409
    assert json.loads(ask(server, "GET", "/status")[1])["phase"] == "waiting"


def test_parts_of_a_package_may_come_twice(server, pod):
    for offset, part in ((0, b"abcd"), (4, b"efgh"), (4, b"efgh"), (8, b"i")):
        assert ask(server, "PUT", f"/package?offset={offset}", body=part)[0] == 200
    assert Path(pod.path("package.tar.gz")).read_bytes() == b"abcdefghi"


def test_a_body_that_is_too_large_is_refused(server, monkeypatch):
    monkeypatch.setattr("cloud.pod.server.LARGEST_REQUEST", 3)
    assert ask(server, "PUT", "/package?offset=0", body=b"abcd")[0] == 413


def test_training_does_not_get_the_keys_of_the_pod(pod, unpacked, monkeypatch):
    monkeypatch.setenv("NANOARCH_TOKEN", "token")
    monkeypatch.setenv("RUNPOD_API_KEY", "key")
    ran = new_job(pod)
    ran.start([("train", 'test -z "$NANOARCH_TOKEN$RUNPOD_API_KEY"')])
    wait_for(ran)
    assert ran.phase == "done"
