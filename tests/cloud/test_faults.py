"""Deployments that meet every kind of trouble. In each: no pod is left, the cap holds by the fake's
own account, the last line says how it ended, the exit status is right, and no secret is shown."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import json
import os
import signal
from collections.abc import Callable

import pytest

from cloud import deployment, fetching, placement, results, runpod_deploy
from cloud.cost_log import CostLog
from cloud.live_view import LiveView
from cloud.work import Work
from tests.cloud.conftest import (
    DONE,
    FAILED,
    LEFT,
    LIMIT,
    Cloud,
    Ended,
    NoSignals,
    check,
    check_money,
    names,
)
from tests.cloud.fake_runpod import Fault
from tests.cloud.stub_pod import Behaviour, StubPod, manifest_of

pytestmark = pytest.mark.slow  # test_deployment.py has the tests for every run


# Replies that fail

REPLIES: dict[str, tuple[list[Fault], int, str]] = {
    "no capacity in the first five": ([Fault("create", "no_capacity", 5)], DONE, "done"),
    "the first creations return None": ([Fault("create", "none", 2)], DONE, "done"),
    "no capacity, in words of a passing error": (
        [Fault("create", "no_capacity_later", 9)],
        FAILED,
        "no capacity in 9 places",
    ),
    "no capacity anywhere": ([Fault("create", "no_capacity", 99)], FAILED, "no capacity in 9"),
    "429 before any pod": (
        [Fault("account", "429", 3), Fault("offers", "429", 3)],
        DONE,
        "done",
    ),
    "500 now and then": ([Fault("any", "500", 2, skip=8 * n) for n in range(9)], DONE, "done"),
    "malformed lists of pods": ([Fault("pods", "malformed", 9, skip=2)], DONE, "done"),
    "lists of pods that are none": ([Fault("pods", "odd", 9, skip=2)], DONE, "done"),
    "lists of pods that are not available": (
        [Fault("pods", "unavailable", 9, skip=2), Fault("offers", "unavailable", 2)],
        DONE,
        "done",
    ),
    "no reply now and then": ([Fault("any", "drop", 3, skip=n) for n in (0, 9, 30)], DONE, "done"),
    "slow replies": ([Fault("any", "slow", 30)], DONE, "done"),
    "a creation without a reply, done": ([Fault("create", "done_no_reply")], DONE, "done"),
    "two of them": ([Fault("create", "done_no_reply", 2)], DONE, "done"),
    "one that shows up late": (
        [Fault("create", "done_no_reply"), Fault("pods", "empty", 2, skip=3)],
        DONE,
        "done",
    ),
    "a creation without a reply, not done": ([Fault("create", "drop", 3)], DONE, "done"),
    "no creation ever has a reply": ([Fault("create", "done_no_reply", 99)], FAILED, "no usable"),
    "a creation of which the reply is cut": ([Fault("create", "malformed")], DONE, "done"),
    "creation is a validation error": ([Fault("create", "validation")], FAILED, "rejects"),
    "creation is forbidden": ([Fault("create", "403")], FAILED, "does not allow"),
    "an error that quotes the query": ([Fault("create", "echo")], FAILED, "rejects"),
    "the key is revoked before creation": ([Fault("create", "401")], FAILED, "API key"),
    "the key is not accepted for a while": ([Fault("pods", "401", 3, skip=3)], DONE, "done"),
    "terminate lies": (
        [Fault("terminate", "lie", 3), Fault("agent:/finish", "500")],
        DONE,
        "done",
    ),
    "terminate has no reply": (
        [Fault("terminate", "drop", 3), Fault("agent:/finish", "500")],
        DONE,
        "done",
    ),
    "the pod costs more than asked": ([Fault("create", "dear")], DONE, "done"),
    "the proxy fails now and then": ([Fault("agent", "500", 40, skip=20)], DONE, "done"),
    "the proxy answers nonsense": ([Fault("agent", "malformed", 20, skip=9)], DONE, "done"),
    "the account's figures never come": (
        [Fault("account", "500", 9999, skip=1)],
        DONE,
        "done",
    ),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies_that_fail(name, cloud: Cloud):
    faults, status, said = REPLIES[name]
    cloud.world.faults += [dataclasses.replace(fault) for fault in faults]
    check(cloud, cloud.deploy(), status, said)


def test_authentication_and_validation_errors_stop_at_once(cloud: Cloud):
    cloud.world.faults.append(Fault("create", "validation", 99))
    cloud.deploy()
    assert cloud.world.requests.count("create") == 1
    cloud.world.faults[:] = [Fault("any", "401", 99)]
    before = len(cloud.world.requests)
    ended = cloud.deploy()
    assert len(cloud.world.requests) == before + 1
    assert (ended.status, ended.last) == (
        FAILED,
        "RunPod does not accept the API key; check RUNPOD_API_KEY.",
    )


def test_a_key_that_is_revoked_at_creation_ends_it_at_once(cloud: Cloud):
    """No pod was created, so none has to be seen to be gone."""
    cloud.world.when["before:create"] = lambda: cloud.world.faults.append(Fault("any", "401", 9999))
    begun = cloud.clock.time
    check(cloud, cloud.deploy(), FAILED, "RunPod does not accept the API key")
    assert cloud.clock.time - begun < 10


def test_a_creation_that_is_done_with_an_error_leaves_no_pod(cloud: Cloud):
    """GraphQL's way if a part of the reply fails; the pod appears after two minutes."""
    cloud.world.faults.append(Fault("create", "done_with_error"))
    cloud.world.hidden["pod1x"] = cloud.clock.time + 120
    ended = cloud.deploy()
    check(cloud, ended, FAILED, "rejects the request: Cannot return null")
    assert "for a pod whose creation got no clear reply" in ended.text


def test_a_reply_that_never_ends_is_given_up(cloud: Cloud, monkeypatch):
    impatient = functools.partial(runpod_deploy.RunPod, reply_seconds=0.1)
    monkeypatch.setattr(runpod_deploy, "RunPod", impatient)
    cloud.world.faults.append(Fault("pods", "hang", 2, skip=2))
    check(cloud, cloud.deploy(), DONE, "done")
    assert cloud.world.faults[0].times == 0


# Places


def test_it_waits_until_there_is_a_gpu(cloud: Cloud):
    opens = cloud.clock.time + 1800
    cloud.world.capacity = lambda gpu, region: cloud.clock.time > opens
    check(cloud, cloud.deploy("--wait"), DONE, "done")


def test_waiting_ends(cloud: Cloud):
    cloud.world.capacity = lambda gpu, region: False
    begun = cloud.clock.time
    check(cloud, cloud.deploy("--wait", "--max_wait=30"), FAILED, "no capacity in 9 places")
    assert 1800 <= cloud.clock.time - begun <= 1900


def test_no_pod_is_rented_for_a_run_that_would_not_end(cloud: Cloud):
    """The run needs 10 minutes, and the GPU comes 5 minutes before the limit."""
    cloud.world.capacity = lambda gpu, region: cloud.clock.time > 1000 + 1500
    ended = cloud.deploy("--wait", "--max_hours=0.5")
    check(cloud, ended, LIMIT, "what is left is too short for any GPU")
    assert cloud.world.rented == []


def test_waiting_goes_on_while_runpod_does_not_answer(cloud: Cloud):
    opens = cloud.clock.time + 900
    cloud.world.capacity = lambda gpu, region: cloud.clock.time > opens
    cloud.world.faults.append(Fault("offers", "500", 8, skip=2))
    check(cloud, cloud.deploy("--wait"), DONE, "done")
    assert cloud.world.faults[0].times == 0


def test_a_spot_price_that_rises_is_no_capacity(cloud: Cloud):
    def rise() -> None:
        cloud.world.prices = {gpu: (gb, 2 * p) for gpu, (gb, p) in cloud.world.prices.items()}

    cloud.world.when["before:create"] = rise
    ended = cloud.deploy("--spot", "--wait")
    check(cloud, ended, DONE, "done")
    assert "no capacity (Your bid is below" in ended.text


def test_gpus_and_regions_are_as_asked(cloud: Cloud):
    cloud.world.capacity = lambda gpu, region: region == "US-KS-2"
    check(cloud, cloud.deploy("--gpus=H100,A100", "--regions=CA-MTL-1,US-KS-2"), DONE, "done")
    assert names(cloud) == [("A100-SXM4-80GB", "US-KS-2")]


def test_candidates_are_in_order_of_dollars_per_run(cloud: Cloud, work: Work, monkeypatch):
    """An H100 costs four times a 4090 and is six times as fast."""
    long = dataclasses.replace(work, flops=1e19)
    monkeypatch.setattr(runpod_deploy, "make_work", lambda request, redact: long)
    ended = cloud.deploy("--max_cost=500", "--max_hours=100")
    check(cloud, ended, DONE, "done", cap=500)
    assert names(cloud) == [("HBM3", "EU-RO-1")]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max_cost=0.01"], "is above --max_cost"),
        (["--max_hours=0.1"], "is above --max_hours"),
        (["--gpus=MI300X"], "RunPod offers no GPU now for --gpus"),
        (["--regions=EU-XX-9"], "RunPod has no data center EU-XX-9; it has EU-RO-1, US-KS-2"),
        (["--volumes=CA-MTL-1=vol1"], "no network volume vol1 in CA-MTL-1; it has US-KS-2=vol1"),
        (["--volumes=US-KS-2=vol9", "--wait"], "no network volume vol9 in US-KS-2"),
    ],
)
def test_what_cannot_be_is_refused_before_any_pod(flags, said, cloud: Cloud):
    ended = cloud.deploy(*flags)
    assert (ended.status, said in ended.last) == (FAILED, True)
    assert cloud.world.rented == []


def test_an_account_without_money_is_refused(cloud: Cloud):
    cloud.world.balance = 0.05
    ended = cloud.deploy()
    assert (ended.status, "the account has $0.05" in ended.last) == (FAILED, True)
    assert cloud.world.rented == []


# Limits


def test_the_wall_limit_holds(cloud: Cloud, long_run):
    begun = cloud.clock.time
    check(cloud, cloud.deploy("--max_hours=0.5"), LIMIT, "stopped at the time limit of 0.5 h")
    assert 1600 < cloud.clock.time - begun < 1830


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("account", "500", 9999, skip=1)],
        [Fault("agent", "500", 99999, skip=20)],
        [Fault("agent", "slow", 9999)],
        [Fault("pods", "500", 60, skip=3)],
    ],
    ids=["account", "agent", "slow agent", "pods"],
)
def test_a_query_that_fails_never_lifts_the_cap(faults, cloud: Cloud, long_run, monkeypatch):
    monkeypatch.setattr("cloud.watch.CONTACT_PATIENCE", 1e9)
    cloud.world.faults += [dataclasses.replace(fault) for fault in faults]
    check(cloud, cloud.deploy("--max_cost=1"), LIMIT, "stopped at the cost cap", cap=1)


def test_the_cap_holds_though_nothing_can_be_listed_any_more(cloud: Cloud, long_run):
    cloud.world.faults.append(Fault("pods", "500", 99999, skip=5))
    ended = cloud.deploy("--max_cost=1")
    check_money(cloud, cap=1)
    assert ended.status == LEFT  # it cannot be seen that the pod is gone
    assert "MAY STILL RUN" in ended.last


def test_what_the_account_spends_besides_prices_counts(cloud: Cloud, long_run):
    cloud.world.surcharge = 0.31  # to $1.00 an hour
    begun = cloud.clock.time
    check(cloud, cloud.deploy("--max_cost=1"), LIMIT, "stopped at the cost cap", cap=1)
    assert cloud.clock.time - begun < 3700


def test_another_pod_of_the_account_is_not_this_ones_cost(cloud: Cloud, long_run):
    """It starts between the list of pods and the question for the account's spending."""
    spending = [0.0, 0.0, 500.0, 0.0]

    def account(query: str, fault: str | None) -> dict:
        rate = sum(pod.rate for pod in cloud.world.alive) + (spending.pop(0) if spending else 0)
        return {"data": {"myself": {"clientBalance": 90.0, "currentSpendPerHr": rate}}}

    begun = cloud.clock.time
    cloud.world.replies["account"] = account
    check(cloud, cloud.deploy("--max_cost=0.5"), LIMIT, "stopped at the cost cap", cap=0.5)
    assert cloud.clock.time - begun > 2000


def test_a_pod_that_cannot_be_removed_is_told_and_removes_itself(cloud: Cloud):
    cloud.world.faults += [Fault("terminate", "lie", 9999), Fault("agent:/finish", "500")]
    ended = cloud.deploy("--max_cost=1")
    assert ended.status == LEFT, ended.text
    assert "MAY STILL RUN AND COST MONEY" in ended.last
    assert len(cloud.world.alive) == 1
    cloud.clock.advance(3600 * 1 / 0.69)
    check_money(cloud, cap=1)
    assert cloud.world.rented[-1].removed_by == "dead man"


# Pods that go away or are of no use


@pytest.mark.parametrize("remove", [False, True], ids=["reclaimed", "vanished"])
def test_a_pod_that_goes_is_replaced_and_training_resumes(remove, cloud: Cloud, monkeypatch):
    monkeypatch.setattr("cloud.watch.FETCH_SECONDS", 300)
    cloud.after(1200, lambda: cloud.reclaim(remove))
    ended = cloud.deploy("--spot", "--community")
    check(cloud, ended, DONE, "done")
    assert [pod.inside.first_step for pod in cloud.world.rented] == [0, 40]
    assert [pod.spot for pod in cloud.world.rented] == [True, True]
    assert {pod.rate for pod in cloud.world.rented} == {0.345}


def test_a_replacement_is_waited_for(cloud: Cloud, monkeypatch):
    """Also without --wait: there is a run to finish, and no pod that costs anything."""
    monkeypatch.setattr("cloud.watch.FETCH_SECONDS", 300)
    closed = (cloud.clock.time + 1200, cloud.clock.time + 1500)
    cloud.world.capacity = lambda gpu, region: not closed[0] < cloud.clock.time < closed[1]
    cloud.after(1200, cloud.reclaim)
    check(cloud, cloud.deploy(), DONE, "done")
    assert [pod.inside.first_step for pod in cloud.world.rented] == [0, 40]


def test_a_run_continues_in_the_dtype_that_it_began_in(cloud: Cloud, monkeypatch):
    """dtype=auto is float32 on a T4 and bfloat16 on an A100."""
    monkeypatch.setattr("cloud.watch.FETCH_SECONDS", 300)
    cloud.world.prices = {"Tesla T4": (16, 0.05), "NVIDIA A100-SXM4-80GB": (80, 1.74)}
    opens = cloud.clock.time + 900
    cloud.world.capacity = lambda gpu, region: "A100" in gpu or cloud.clock.time > opens
    cloud.after(1200, cloud.reclaim)
    check(cloud, cloud.deploy(), DONE, "done")
    assert [gpu for gpu, _ in names(cloud)] == ["A100-SXM4-80GB"] * 2


def test_what_was_downloaded_is_named_when_there_is_no_replacement(cloud: Cloud, monkeypatch):
    monkeypatch.setattr("cloud.watch.FETCH_SECONDS", 300)
    opens = cloud.clock.time + 1000
    cloud.world.capacity = lambda gpu, region: cloud.clock.time < opens
    cloud.after(1200, cloud.reclaim)
    check(
        cloud,
        cloud.deploy(),
        FAILED,
        "; what was saved is in out/tried (validation loss 2.3333 nats).",
    )


def test_what_a_pod_saved_when_it_stopped_by_itself_comes_home(cloud: Cloud):
    """As one whose time is nearly up: its server still answers, with no volume behind it."""

    def stop() -> None:
        pod = cloud.world.alive[0].inside
        pod.stopped = cloud.clock.time

    cloud.after(900, stop)
    check(cloud, cloud.deploy(), DONE, "done")
    assert [pod.inside.first_step for pod in cloud.world.rented] == [0, 30]


def test_on_a_volume_training_resumes_from_there(cloud: Cloud):
    cloud.after(1000, cloud.reclaim)
    cloud.after(990, lambda: cloud.world.alive[0].inside.files())  # as train.py saves
    ended = cloud.deploy("--volumes=US-KS-2=vol1")
    check(cloud, ended, DONE, "done")
    assert [pod.inside.first_step for pod in cloud.world.rented] == [0, 40]
    assert {pod.volume for pod in cloud.world.rented} == {"vol1"}
    assert {pod.region for pod in cloud.world.rented} == {"US-KS-2"}


def test_a_run_goes_on_where_its_volume_is(cloud: Cloud):
    """Not in the other data center, whose volume has nothing of it."""
    cloud.world.capacity = lambda gpu, region: region == "US-KS-2" or cloud.clock.time > 1500
    cloud.after(1000, cloud.reclaim)
    check(cloud, cloud.deploy("--volumes=EU-RO-1=vol2,US-KS-2=vol1"), DONE, "done")
    assert [pod.region for pod in cloud.world.rented] == ["US-KS-2", "US-KS-2"]


def test_pods_that_go_for_ever_end_it(cloud: Cloud):
    for hour in range(1, 30):
        cloud.after(400 * hour, cloud.reclaim)
    check(cloud, cloud.deploy(), FAILED, "10 pods were of no use")
    assert len(cloud.world.rented) == 10


BEHAVIOURS: dict[str, tuple[Behaviour, int, str, int]] = {
    "the smoke test fails": (Behaviour(fails=("smoke", 1)), FAILED, "smoke ended with", 3),
    "installing fails": (Behaviour(fails=("setup", 1)), FAILED, "setup ended with", 3),
    "a config error": (Behaviour(fails=("smoke", 2)), FAILED, "smoke ended with", 1),
    "training fails": (Behaviour(fails=("train", 1)), FAILED, "train ended with", 1),
    "the disk is full": (Behaviour(disk_full=True), FAILED, "train ended with", 1),
    "the server never answers": (
        Behaviour(never_boots=True),
        FAILED,
        "not answered for 20 minutes",
        3,
    ),
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_jobs_that_fail(name, cloud: Cloud, monkeypatch):
    behaviour, status, said, pods = BEHAVIOURS[name]
    monkeypatch.setattr(StubPod, "behaviour", behaviour)
    ended = cloud.deploy()
    check(cloud, ended, status, said)
    assert len(cloud.world.rented) == pods
    assert ("No space left" in ended.text) == behaviour.disk_full


def test_one_bad_machine_is_replaced(cloud: Cloud, monkeypatch):
    def fail_once() -> None:
        cloud.world.alive[-1].inside.how.fails = ("smoke", 1)

    cloud.world.when["after:create"] = fail_once
    check(cloud, cloud.deploy(), DONE, "done")
    assert len(cloud.world.rented) == 2


def test_a_server_that_falls_silent_is_replaced(cloud: Cloud):
    def fall_silent() -> None:
        cloud.world.alive[0].inside.how.never_boots = True

    cloud.after(600, fall_silent)
    check(cloud, cloud.deploy(), DONE, "done")
    assert len(cloud.world.rented) == 2


# Results


def test_a_file_damaged_on_its_way_is_fetched_again(cloud: Cloud):
    cloud.world.when["phase:done"] = lambda: cloud.world.faults.append(
        Fault("agent:/file", "damaged", 2)
    )
    check(cloud, cloud.deploy(), DONE, "done")


def test_results_come_from_the_volume_where_the_pod_is_gone(cloud: Cloud, monkeypatch):
    monkeypatch.setenv("RUNPOD_S3_ACCESS_KEY", "user_access")
    monkeypatch.setenv("RUNPOD_S3_SECRET_KEY", "rps_secret-key")

    def vanish() -> None:
        pod = cloud.world.alive[0]
        files = pod.inside.files()
        done = {"deployment": pod.env["NANOARCH_DEPLOYMENT"], "phase": "done", "exit_code": 0}
        place = f"nanoarch/{pod.env['NANOARCH_RUN']}"
        cloud.world.volumes["vol1"] |= {
            f"{place}/done.json": json.dumps(done).encode(),
            f"{place}/manifest.json": json.dumps(manifest_of(files)).encode(),
            **{f"{place}/out/tried/{path}": content for path, content in files.items()},
        }
        cloud.world.remove(pod, "RunPod")

    monkeypatch.setattr(StubPod, "behaviour", Behaviour(train=1190.0))
    cloud.after(1375, vanish)  # done at 1370, the next look is at 1380
    ended = cloud.deploy("--volumes=US-KS-2=vol1")
    check(cloud, ended, DONE, "done: validation loss 2.0000")
    assert len(cloud.world.rented) == 1


def test_results_are_worth_waiting_for(cloud: Cloud):
    """The proxy fails for ten minutes when training is done."""
    cloud.world.when["phase:done"] = lambda: cloud.world.faults.append(
        Fault("agent", "500", 30, skip=1)
    )
    ended = cloud.deploy()
    check(cloud, ended, DONE, "done: validation loss 2.0000")
    assert "the results cannot be downloaded now" in ended.text


def test_a_full_disk_here_is_waited_for(cloud: Cloud, monkeypatch):
    copy, fails = results.shutil.copyfile, [True] * 5

    def fail_at_first(*about: object) -> object:
        if fails:
            fails.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(*about)

    monkeypatch.setattr(results.shutil, "copyfile", fail_at_first)
    ended = cloud.deploy()
    check(cloud, ended, DONE, "done: validation loss 2.0000")
    assert "cannot write the results in out/tried: No space left on device" in ended.text


def test_results_that_never_come_end_it_after_half_an_hour(cloud: Cloud):
    cloud.world.faults.append(Fault("agent:/files", "500", 9999))
    begun = cloud.clock.time
    check(cloud, cloud.deploy(), FAILED, "trained, but the results could not be downloaded")
    assert 1800 < cloud.clock.time - begun - 1380 < 2000


@pytest.mark.parametrize(
    "path", ["../../escaped", "/tmp/escaped", "a/../../escaped", "", "a\nb", "C:escaped"]
)
def test_a_pod_cannot_write_elsewhere(path, cloud: Cloud, monkeypatch):
    monkeypatch.setattr(StubPod, "files", lambda self: {path: b"x"})
    check(cloud, cloud.deploy(), FAILED, "the list of results is not valid")
    assert not list(cloud.folder.rglob("*escaped*"))


def test_another_run_of_that_name_is_not_overwritten(cloud: Cloud):
    """As where a volume has one: its log begins with another record."""
    home = cloud.folder / "out/tried"
    (home / "checkpoints/step_00000010").mkdir(parents=True)
    (home / "metrics.jsonl").write_text('{"kind": "eval", "iter": 10, "wall_seconds": 99.0}\n')
    ended = cloud.deploy()
    check(cloud, ended, FAILED, "out/tried holds another run than the pod under the same name")
    assert (home / "checkpoints/step_00000010").is_dir()
    assert "99.0" in (home / "metrics.jsonl").read_text()


def test_a_sweep_writes_only_its_own_folders(cloud: Cloud, work: Work, monkeypatch):
    sweep = dataclasses.replace(work, results="sweeps", parts=("mine",))
    monkeypatch.setattr(runpod_deploy, "make_work", lambda request, redact: sweep)
    files = {"mine/arm/run.json": b"{}", "yours/arm/run.json": b"{}"}
    monkeypatch.setattr(StubPod, "files", lambda self: files)
    assert cloud.deploy().status == DONE
    assert [path.name for path in (cloud.folder / "out/sweeps").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("agent:/files", "500", 9999)],
        [Fault("terminate", "lie", 9999), Fault("agent:/finish", "500", 9999)],
    ],
    ids=["results", "removal"],
)
def test_costs_are_logged_while_something_is_waited_for(faults, cloud: Cloud):
    cloud.world.faults += [dataclasses.replace(fault) for fault in faults]
    cloud.deploy()
    with (cloud.folder / "metrics/cost_log.csv").open() as file:
        times = [float(row["runtime_seconds"]) for row in csv.DictReader(file)]
    assert times[-1] > 2000
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) <= 335


# Signals and crashes

MOMENTS = [
    *("before:create", "after:create", "agent:/package", "agent:/start", "phase:setup"),
    *("phase:train", "agent:/files", "agent:/file", "phase:done", "before:terminate"),
]
ONCE_TRAINED = ("agent:/files", "agent:/file", "phase:done", "before:terminate")
"""Moments when results are all that is left to download."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_every_stage(moment, number, cloud: Cloud):
    def send_signal() -> None:
        os.kill(os.getpid(), number)

    if moment.startswith("agent:/file"):  # of the results, not of a checkpoint
        cloud.world.when["phase:done"] = lambda: cloud.world.when.update({moment: send_signal})
    else:
        cloud.world.when[moment] = send_signal
    ended = cloud.deploy()
    if moment in ONCE_TRAINED:
        check(cloud, ended, DONE, "done: validation loss 2.0000")
    else:
        check(cloud, ended, 128 + number, f"stopped by {number.name}")


def test_a_second_signal_ends_the_download(cloud: Cloud, monkeypatch):
    for moment in ("phase:done", "agent:/file"):
        cloud.world.when[moment] = lambda: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr("cloud.watch.FETCH_SECONDS", 1e9)
    check(cloud, cloud.deploy(), 130, "stopped by SIGINT.")


def test_a_signal_saves_and_fetches_and_a_second_does_not(cloud: Cloud):
    cloud.after(900, lambda: os.kill(os.getpid(), signal.SIGINT))
    ended = cloud.deploy()
    check(
        cloud,
        ended,
        130,
        "stopped by SIGINT; what was saved is in out/tried (validation loss 2.5000 nats).",
    )
    assert (cloud.folder / "out/tried/checkpoints/step_00000030").is_dir()


def test_two_signals_leave_no_pod(cloud: Cloud):
    cloud.after(500, lambda: os.kill(os.getpid(), signal.SIGTERM))
    cloud.world.when["agent:/stop"] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    check(cloud, cloud.deploy(), 143, "stopped by SIGTERM.")


def test_the_handlers_are_those_of_before_again(cloud: Cloud):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    cloud.deploy()
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def fail(*about: object, **more: object) -> None:
    raise ZeroDivisionError("a bug")


CRASHES: dict[str, tuple[object, str]] = {
    "view": (LiveView, "show"),
    "costs": (CostLog, "note"),
    "fetch": (fetching, "fetch"),
    "package": (deployment, "make_package"),
    "watch": (deployment.PodWatch, "until_over"),
    "choice": (placement, "choose"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_of_our_own_leaves_no_pod(name, cloud: Cloud, monkeypatch):
    monkeypatch.setattr(*CRASHES[name], fail)
    ended = cloud.deploy()
    check(cloud, ended, FAILED, "an error in this program (ZeroDivisionError)")
    assert "a bug" in ended.text


def test_a_crash_while_pods_are_removed_leaves_none(cloud: Cloud, monkeypatch):
    monkeypatch.setattr(CostLog, "repeat", lambda costs: cloud.world.rented and fail())
    cloud.world.faults.append(Fault("terminate", "lie", 8))
    check(cloud, cloud.deploy(), FAILED, "an error in this program (ZeroDivisionError)")
    assert cloud.world.faults[0].times == 0


def test_a_cost_log_that_cannot_be_written_ends_nothing(cloud: Cloud):
    (cloud.folder / "metrics").write_text("in the way")
    ended = cloud.deploy()
    check(cloud, ended, DONE, "done")
    assert ended.text.count("costs still count") == 1


# Clocks


@pytest.mark.parametrize("jump", [365 * 86400.0, -365 * 86400.0, 3600.0, -3600.0])
def test_a_date_that_jumps_changes_nothing(jump, cloud: Cloud, long_run):
    cloud.after(600, lambda: setattr(cloud.clock, "jump", jump))
    begun = cloud.clock.time
    check(cloud, cloud.deploy("--max_cost=0.5"), LIMIT, "stopped at the cost cap", cap=0.5)
    assert 0.8 < (cloud.clock.time - begun) / (3600 * 0.5 / 0.69) <= 1


def test_a_date_far_in_the_future_leaves_the_pods_own_clock(cloud: Cloud, long_run):
    cloud.clock.jump = 365 * 86400.0
    check(cloud, cloud.deploy("--max_cost=0.5"), LIMIT, "stopped at the cost cap", cap=0.5)


def test_a_machine_that_was_paused_believes_runpod(cloud: Cloud, long_run):
    """As a virtual machine that was paused for half an hour, so that no clock of it went on."""

    def pause() -> None:
        cloud.clock.lag += 1800
        cloud.clock.advance(1800)

    cloud.after(300, pause)
    check(cloud, cloud.deploy("--max_cost=0.5"), LIMIT, "stopped at the cost cap", cap=0.5)


# Several deployments


def other(work: Work) -> Callable[..., Work]:
    return lambda request, redact: dataclasses.replace(work, name="other", results="other")


def test_two_deployments_at_once_leave_each_other_alone(cloud: Cloud, work: Work, monkeypatch):
    seconds: list[Ended] = []

    def deploy_another() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(runpod_deploy, "make_work", other(work))
            seconds.append(cloud.deploy())

    cloud.after(600, deploy_another)
    check(cloud, cloud.deploy(), DONE, "results in out/tried")
    check(cloud, seconds[0], DONE, "results in out/other")
    assert len({pod.name.rsplit("-", 1)[0] for pod in cloud.world.rented}) == 2
    assert len(cloud.world.rented) == 2


def test_one_run_is_not_deployed_twice(cloud: Cloud):
    seconds: list[Ended] = []
    cloud.after(600, lambda: seconds.append(cloud.deploy()))
    check(cloud, cloud.deploy(), DONE, "done")
    assert (seconds[0].status, "is being trained by process" in seconds[0].last) == (1, True)
    assert len(cloud.world.rented) == 1


def test_a_pod_that_shows_up_late_is_removed_while_another_trains(cloud: Cloud):
    cloud.world.faults.append(Fault("create", "done_no_reply"))
    cloud.world.hidden["pod1x"] = cloud.clock.time + 300
    check(cloud, cloud.deploy(), DONE, "done")
    assert [pod.removed_by for pod in cloud.world.rented] == ["the deployer", "finish"]
    assert 280 < cloud.world.rented[0].ended - cloud.world.rented[0].begun < 340


# A deployer that is killed


@pytest.mark.parametrize(
    "moment", ["after:create", "agent:/package", "phase:setup", "phase:train", "agent:/files"]
)
def test_after_kill_9_the_dead_man_switch_removes_the_pod(moment, cloud: Cloud, monkeypatch):
    monkeypatch.setattr(runpod_deploy, "StopSignals", NoSignals)
    cloud.world.when[moment] = lambda: setattr(cloud.clock, "dead", True)
    cloud.deploy_until_killed("--max_cost=1", "--max_hours=1")
    assert len(cloud.world.alive) == 1
    cloud.clock.advance(3600)
    check_money(cloud, cap=1)
    assert cloud.world.rented[0].removed_by == "dead man"
