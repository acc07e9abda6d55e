"""What runs in a pod, by itself: restarts, full disks, its clocks, requests it must refuse."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from cloud import pod_agent
from cloud.pod_agent import Job, Place, Remaining


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
def place(tmp_path: Path) -> Place:
    made = Place(environment(tmp_path))
    (tmp_path / "code/tree/code").mkdir(parents=True)
    return made


def wait_for(job: Job) -> None:
    for _ in range(500):
        if job.over:
            return
        time.sleep(0.01)
    pytest.fail(f"the job is not over: {job.status()}")


STEPS = [("setup", "echo set up"), ("smoke", ["true"]), ("train", ["echo", "trained"])]


@pytest.fixture
def unpacked(monkeypatch) -> None:
    monkeypatch.setattr(Job, "_unpack", lambda self: None)


def test_a_job_runs_its_steps_and_leaves_a_done_marker(place, unpacked):
    job = Job(place)
    job.start(STEPS)
    wait_for(job)
    log = Path(place.path("pod.log")).read_text().split()
    assert log == ["[setup]", "set", "up", "[smoke]", "[train]", "trained"]
    done = json.loads(Path(place.home, "done.json").read_text())
    assert (done["phase"], done["exit_code"], done["deployment"]) == ("done", 0, "abc")


@pytest.mark.parametrize(("step", "status"), [("setup", 3), ("smoke", 2), ("train", 1)])
def test_a_step_that_fails_ends_the_job(step, status, place, unpacked):
    job = Job(place)
    job.start([(name, f"exit {status}" if name == step else "true") for name, _ in STEPS])
    wait_for(job)
    told = job.status()
    assert (told["phase"], told["exit_code"]) == ("failed", status)
    assert told["error"] == f"{step} ended with exit status {status}"


def test_a_container_that_starts_again_does_not_train_again(place, unpacked):
    job = Job(place)
    job.start(STEPS)
    wait_for(job)
    again = Job(place)
    assert (again.phase, again.exit_code, again.thread) == ("done", 0, None)


def test_a_container_that_starts_again_goes_on_with_the_job(place, unpacked):
    Path(place.path("started.json")).write_text(json.dumps({"steps": STEPS}))
    again = Job(place)
    wait_for(again)
    assert again.phase == "done"


def test_a_pod_that_failed_is_not_the_end_of_the_next_on_its_volume(place, unpacked):
    job = Job(place)
    job.start([("smoke", "exit 1")])
    wait_for(job)
    assert Job(place).phase == "failed"  # of this pod it is
    Path(place.path("started.json")).unlink()
    place.pod = "pod2"
    assert Job(place).phase == "waiting"


def test_the_digests_of_large_results_are_waited_for(place, monkeypatch):
    monkeypatch.setattr(pod_agent, "READING_SECONDS", 0.0)
    job, goes_on = Job(place), threading.Event()
    monkeypatch.setattr(job, "manifest", lambda: goes_on.wait(10) and {"files": {}})
    assert job.manifest_soon() is None
    goes_on.set()
    job.reading.thread.join()
    assert job.manifest_soon() == {"files": {}}


def test_the_done_marker_of_another_deployment_does_not_count(place, unpacked):
    Path(place.home, "done.json").write_text(
        json.dumps({"deployment": "other", "phase": "done", "exit_code": 0})
    )
    assert Job(place).phase == "waiting"


def test_a_full_volume_ends_nothing_but_what_needs_it(place, unpacked, monkeypatch):
    monkeypatch.setattr(pod_agent, "write", lambda path, content: False)
    job = Job(place)
    job.start(STEPS)
    wait_for(job)
    assert job.status()["phase"] == "done"


def test_a_full_disk_is_told(tmp_path):
    assert pod_agent.write(str(tmp_path / "no/folder"), "x") is False


def test_stopping_asks_once_since_a_second_signal_would_not_save(place, unpacked):
    job = Job(place)
    count = 'n=0; trap "n=\\$((n+1))" TERM; for i in $(seq 10); do sleep 0.1; done; exit $n'
    job.start([("train", count)])
    while job.process is None:
        time.sleep(0.01)
    time.sleep(0.2)
    job.stop()
    job.stop()
    wait_for(job)
    assert (job.phase, job.exit_code) == ("stopped", 1)


def test_a_job_that_is_stopped_before_it_began_is_over(place):
    job = Job(place)
    job.stop()
    assert (job.phase, job.over) == ("stopped", True)


def test_the_status_tells_the_last_evaluation_and_checkpoint(place):
    results = Path(place.results)
    (results / "checkpoints/step_00000020").mkdir(parents=True)
    (results / "metrics.jsonl").write_text(
        '{"kind": "eval", "iter": 10, "val_loss": 2.5}\n{"kind": "train", "iter": 12}\n{"kind": '
    )
    told = Job(place).status()
    assert (told["iter"], told["val_loss"], told["evaluated"]) == (12, 2.5, 10)
    assert told["checkpoint"] == "step_00000020"


def test_status_json_is_on_the_volume(place, unpacked):
    job = Job(place)
    threading.Thread(target=job.supervise, daemon=True).start()
    job.start(STEPS)
    wait_for(job)
    for _ in range(300):
        if json.loads(Path(place.home, "status.json").read_text() or "{}").get("over"):
            return
        time.sleep(0.01)
    pytest.fail("status.json does not tell that the job is over")


# The clocks


def test_a_pod_ends_by_the_strictest_of_its_clocks(tmp_path, monkeypatch):
    remaining = Remaining(Place(environment(tmp_path)))
    assert 990 < remaining.seconds() <= 1000
    monkeypatch.setattr(pod_agent, "seconds_awake", lambda start=remaining.awake: start + 400)
    assert 590 < remaining.seconds() <= 600
    now = time.time()
    monkeypatch.setattr(pod_agent.time, "time", lambda: now + 700)
    assert 290 < remaining.seconds() <= 300
    monkeypatch.setattr(pod_agent.time, "time", lambda: now - 1e6)  # a date that goes back
    assert 590 < remaining.seconds() <= 600


def test_starting_again_does_not_begin_a_new_time(tmp_path, monkeypatch):
    place = Place(environment(tmp_path, NANOARCH_DEADLINE=str(time.time() + 1e6)))
    Remaining(place)
    now = time.time()
    monkeypatch.setattr(pod_agent.time, "time", lambda: now + 900)
    assert 90 < Remaining(place).seconds() <= 100


def test_the_deadline_holds_though_the_first_start_is_forgotten(tmp_path):
    place = Place(environment(tmp_path, NANOARCH_DEADLINE=str(time.time() + 50)))
    assert Remaining(place).seconds() <= 50


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pod": "pod1"}', '{"pod": "pod1", "time": NaN}'])
def test_a_damaged_record_of_the_first_start_does_not_stop_the_switch(text, tmp_path):
    place = Place(environment(tmp_path))
    Path(place.path("first-start.json")).write_text(text)
    assert 990 < Remaining(place).seconds() <= 1000


def test_the_switch_waits_for_no_reply(tmp_path, monkeypatch):
    monkeypatch.setattr(pod_agent, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(pod_agent, "_ask", lambda place, query: time.sleep(60))
    assert pod_agent.price_of_pod(Place(environment(tmp_path))) is None


def test_a_pod_that_costs_more_ends_sooner(tmp_path):
    remaining = Remaining(Place(environment(tmp_path)))
    remaining.shorten_to_price(36.0)  # a dollar lasts 100 seconds
    assert 90 < remaining.seconds() <= 100
    remaining.shorten_to_price(0.001)
    assert remaining.seconds() <= 100


# Requests


@pytest.fixture
def address(place, unpacked) -> Iterator[tuple[str, int]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), pod_agent.Handler)
    server.daemon_threads = True
    server.place, server.job = place, Job(place)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address
    server.shutdown()
    server.server_close()


def ask(address, method, path, token="token", body=b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=10)
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
def test_every_request_needs_the_token(method, path, token, address):
    assert ask(address, method, path, token.encode().decode("latin-1"))[0] == 401


@pytest.mark.parametrize("path", ["../done.json", "/etc/passwd", "a/../../../done.json", "linked"])
def test_only_results_are_served(path, address, place):
    Path(place.results).mkdir(parents=True)
    os.symlink("/etc/passwd", Path(place.results, "linked"))
    Path(place.home, "done.json").write_text("{}")
    assert ask(address, "GET", f"/file?path={path}&offset=0&length=100")[0] == 404


def test_a_package_that_was_damaged_does_not_start(address, place):
    ask(address, "PUT", "/package?offset=0", body=b"abc")
    order = json.dumps({"sha256": "0" * 64, "steps": STEPS}).encode()
    assert ask(address, "POST", "/start", body=order)[0] == 409
    assert json.loads(ask(address, "GET", "/status")[1])["phase"] == "waiting"


def test_a_package_is_put_together_from_parts_that_may_come_twice(address, place):
    for offset, part in ((0, b"abcd"), (4, b"efgh"), (4, b"efgh"), (8, b"i")):
        assert ask(address, "PUT", f"/package?offset={offset}", body=part)[0] == 200
    assert Path(place.path("package.tar.gz")).read_bytes() == b"abcdefghi"


def test_nothing_is_run_with_the_keys_of_the_pod(place, unpacked, monkeypatch):
    monkeypatch.setenv("NANOARCH_TOKEN", "token")
    monkeypatch.setenv("RUNPOD_API_KEY", "key")
    job = Job(place)
    job.start([("train", 'test -z "$NANOARCH_TOKEN$RUNPOD_API_KEY"')])
    wait_for(job)
    assert job.phase == "done"
