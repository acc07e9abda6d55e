"""The commands besides deploying: status, stop, sweep-orphans, cost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from cloud.cost_log import COST_LOG, costs
from cloud.endings import PODS_LEFT
from cloud.failures import CloudError, NoSuchPod, Refused
from cloud.own_pods import deployment_of
from cloud.records import is_live, known_deployments
from cloud.retries import patiently
from cloud.runpod_api import RunPod
from cloud.runpod_types import Pod
from cloud.timekeeping import Clock
from errors import UserError, printable, quoted
from training.log_text import format_clock

STOP_SECONDS = 600.0
"""For which `stop` waits for the command that it stopped."""

REMOVAL_ROUNDS, ROUND_SECONDS = 20, 3.0
"""How often `stop` and `sweep-orphans` look whether pods are gone, and the pause between."""

Say = Callable[[str], None]


def own_pods(api: RunPod, clock: Clock) -> list[Pod]:
    """Every pod of any deployment. Raises UserError if RunPod does not answer."""
    try:
        pods = patiently(api.pods, clock.sleep)
    except CloudError as error:
        raise UserError(f"RunPod does not answer: {error}") from None
    return [pod for pod in pods if deployment_of(pod)]


def orphans(api: RunPod, clock: Clock) -> tuple[list[Pod], list[Pod]]:
    """Pods whose command no longer runs, and pods that were not started from this directory."""
    records = {about["deployment"]: about for about in known_deployments()}
    dead, unknown = [], []
    for pod in own_pods(api, clock):
        about = records.get(deployment_of(pod))
        if about is None:
            unknown.append(pod)
        elif not is_live(about):
            dead.append(pod)
    return dead, unknown


def status(argv: Sequence[str], api: RunPod, clock: Clock, say: Say) -> int:
    """Print the pods of all deployments and the account's balance."""
    _refuse_arguments("status", argv)
    records = {about["deployment"]: about for about in known_deployments()}
    pods = own_pods(api, clock)
    for pod in pods:
        about = records.get(deployment_of(pod))
        watched = "not started from this directory"
        if about is not None:
            watched = f"run {printable(str(about['run']))}: "
            watched += "its command runs" if is_live(about) else "NOT WATCHED; see sweep-orphans"
        price = "price unknown" if pod.cost_per_hour is None else f"${pod.cost_per_hour:.2f}/h"
        say(
            f"{pod.id}  {pod.name}  {pod.state}  {pod.gpu}  {price}  up "
            f"{format_clock(pod.uptime)}  {watched}"
        )
    if not pods:
        say("no pods of this project")
    with contextlib.suppress(CloudError):
        account = api.account()
        say(f"account: ${account.balance:.2f}, spending ${account.spend_per_hour:.2f}/h")
    return 0


def stop(argv: Sequence[str], api: RunPod, clock: Clock, say: Say) -> int:
    """Stop the deployments of a run: ask the command to save and download, or else remove its
    pods."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("stop needs the name of a run; status lists them.")
    records = known_deployments()
    matching = [about for about in records if argv[0] in (about["run"], about["deployment"])]
    if not matching:
        names = ", ".join(dict.fromkeys(str(about["run"]) for about in records)) or "none"
        raise UserError(f"no deployment {quoted(argv[0])} in this directory; known: {names}.")
    for about in filter(is_live, matching):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(about["process"]), signal.SIGTERM)
        say(f"process {about['process']} saves, downloads and removes its pod ...")
        end = clock.now() + STOP_SECONDS
        while is_live(about) and clock.now() < end:
            clock.sleep(1)
    ids = {about["deployment"] for about in matching}
    return remove(
        lambda: [pod for pod in own_pods(api, clock) if deployment_of(pod) in ids], api, clock, say
    )


def sweep_orphans(argv: Sequence[str], api: RunPod, clock: Clock, say: Say) -> int:
    """Remove the pods whose command no longer runs; with --all also those that were not started
    from this directory, but perhaps on another machine."""
    if list(argv) not in ([], ["--all"]):
        raise UserError("sweep-orphans takes no argument but --all.")
    if not argv:
        for pod in orphans(api, clock)[1]:
            say(f"{pod.id}  {pod.name}  not started from this directory; --all removes it, too")

    def find() -> list[Pod]:
        dead, unknown = orphans(api, clock)
        return dead + (unknown if argv else [])

    return remove(find, api, clock, say)


def remove(find: Callable[[], list[Pod]], api: RunPod, clock: Clock, say: Say) -> int:
    """Remove the pods that `find` returns until it returns none; the exit status."""
    removed: set[str] = set()
    trouble = ""
    for _ in range(REMOVAL_ROUNDS):
        try:
            pods = find()
        except UserError as error:
            trouble = str(error)
        else:
            if not pods:
                say(
                    f"removed {_count(len(removed))}; none is left" if removed else "no pod is left"
                )
                return 0
            removed |= {pod.id for pod in pods}
            trouble = f"{_count(len(pods))} still there: {', '.join(pod.name for pod in pods)}"
            for pod in pods:
                _terminate(pod, api, say)
        clock.sleep(ROUND_SECONDS)
    say(f"{trouble.removesuffix('.')}; check RunPod's console")
    return PODS_LEFT


def _terminate(pod: Pod, api: RunPod, say: Say) -> None:
    try:
        api.terminate(pod.id)
    except NoSuchPod:
        pass
    except (CloudError, Refused) as error:
        say(f"{pod.id}: {error}")


def _count(pods: int) -> str:
    return f"{pods} pod{'s' * (pods != 1)}"


def show_costs(argv: Sequence[str], say: Say) -> int:
    """Print what each deployment cost, from the cost log."""
    _refuse_arguments("cost", argv)
    rows, damaged = costs(COST_LOG)
    for row in rows:
        say(
            f"{row['timestamp']}  {row['deployment']}  {printable(row['run'])}  {row['state']}  "
            f"{format_clock(float(row['runtime_seconds']))}  ${float(row['cumulative_usd']):.2f}"
        )
    total = sum(float(row["cumulative_usd"]) for row in rows)
    if damaged:
        say(f"{damaged} row{'s' * (damaged != 1)} of {COST_LOG} cannot be read")
    say(f"{len(rows)} deployment{'s' * (len(rows) != 1)}, ${total:.2f}")
    return 0


def _refuse_arguments(command: str, argv: Sequence[str]) -> None:
    if argv:
        raise UserError(f"{command} takes no arguments: {quoted(list(argv))}.")
