"""What replies of RunPod and of a pod mean, and what is refused."""

from __future__ import annotations

import pytest

from cloud import runpod_messages, runpod_replies
from cloud.failures import NoCapacity, NoSuchPod, Refused, Transient, Unclear
from cloud.job_status import job_status
from cloud.retries import patiently, pause_before

MESSAGES = {
    "There are no longer any instances available with the requested specifications. Please "
    "refresh and try again.": NoCapacity,
    "There are no longer any instances available with the request specifications. Please try "
    "again later.": NoCapacity,
    "There are no longer any instances available with enough disk space.": NoCapacity,
    "There are not enough free GPUs on the host machine to start this pod.": NoCapacity,
    "This machine does not have the resources to deploy your pod. Please try a different "
    "machine.": NoCapacity,
    "Your bid is too low.": NoCapacity,
    "pod not found to terminate": NoSuchPod,
    "Something went wrong. Please try again later or contact support.": Transient,
    "Internal server error": Transient,
    "Rate limit exceeded": Transient,
    "Unauthorized": Refused,
    'Field "gpuCount" of required type "Int!" was not provided.': Refused,
    "Syntax Error: Expected Name, found }": Refused,
    "Forbidden: permission denied": Refused,
    "Your account balance is too low to rent this pod.": Unclear,
    "Cannot return null for non-nullable field Machine.podHostId.": Unclear,
}
"""The first seven are from reports of users of the service."""


@pytest.mark.parametrize("message", MESSAGES)
def test_messages(message):
    assert type(runpod_messages.failure(message)) is MESSAGES[message]


def test_pauses_double_up_to_a_minute_and_differ():
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (7, 60), (99, 60)):
        pauses = {pause_before(attempt) for _ in range(50)}
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


def test_what_may_work_later_is_tried_again_and_then_raised():
    pauses = []
    with pytest.raises(Transient):
        patiently(lambda: (_ for _ in ()).throw(Transient("no reply")), pauses.append, tries=4)
    assert len(pauses) == 3


STATUS = {
    "deployment": "abc",
    "phase": "train",
    "over": False,
    "exit_code": None,
    "error": "",
    "iter": 3,
    "val_loss": 2.5,
    "checkpoint": None,
    "runs": None,
}


def test_a_status_is_read():
    status = job_status(STATUS, "abc")
    assert (status.phase, status.iter, status.val_loss, status.trains) == ("train", 3, 2.5, True)


@pytest.mark.parametrize(
    "changed",
    [
        {"deployment": "other"},
        {"phase": 3},
        {"over": "no"},
        {"iter": 10**400},
        {"iter": 2.5},
        {"val_loss": 1e300},
        {"val_loss": "low"},
        {"error": None},
        {"runs": [1]},
    ],
)
def test_a_status_of_another_kind_is_no_status(changed):
    with pytest.raises(Transient):
        job_status(STATUS | changed, "abc")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_none(loss):
    assert job_status(STATUS | {"val_loss": loss}, "abc").val_loss is None


def test_control_characters_of_a_pod_reach_no_terminal():
    status = job_status(STATUS | {"phase": "\x1b[2J", "error": "\x07" * 9999}, "abc")
    assert status.phase == "\\x1b[2J"
    assert len(status.error) == 500


@pytest.mark.parametrize(
    "balance", [None, True, "5", float("nan"), float("inf"), pytest.param(10**400, id="huge")]
)
def test_an_account_without_numbers_is_no_account(balance):
    with pytest.raises(Transient, match="no number clientBalance"):
        runpod_replies.account({"myself": {"clientBalance": balance, "currentSpendPerHr": 0}})


@pytest.mark.parametrize(
    "price", [None, 0, -1.0, True, float("nan"), pytest.param(10**400, id="huge")]
)
def test_an_offer_without_a_price_is_no_offer(price):
    kind = {"id": "NVIDIA L4", "memoryInGb": 24, "at0": {"uninterruptablePrice": price}}
    data = {"gpuTypes": [kind]}
    assert runpod_replies.offers(data, ["EU-RO-1"], "uninterruptablePrice", 1) == []


def test_the_price_of_a_pod_is_that_of_all_its_gpus():
    kind = {"id": "NVIDIA L4", "memoryInGb": 24, "at0": {"uninterruptablePrice": 0.4301}}
    (offer,) = runpod_replies.offers({"gpuTypes": [kind]}, [None], "uninterruptablePrice", 4)
    assert offer.price == pytest.approx(4 * 0.431)  # rounded up to a tenth of a cent


@pytest.mark.parametrize("found", [None, {}, [3], [{"name": "x"}], [{"id": 'a"b'}]])
def test_a_list_of_pods_of_another_kind_is_no_list(found):
    with pytest.raises(Transient):
        runpod_replies.pods(found)
