"""Train in the cloud: `python -m cloud.runpod_deploy`. docs/cloud.md describes it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets as random_secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cli import run_cli
from cloud.cost_log import COST_LOG, costs
from cloud.deployment import PODS_LEFT, Deployment, Surroundings
from cloud.failures import CloudError
from cloud.live_view import elapsed_text
from cloud.own_pods import TAG
from cloud.plan import Estimates, choose, plan_lines, refuse_if_none
from cloud.redaction import Redactor, api_key, read_secrets
from cloud.request import COMMANDS, Request, parser, read_request
from cloud.retries import patiently
from cloud.runpod_api import Pod, RunPod
from cloud.timekeeping import Clock, StopSignals, bounded
from cloud.work import Work, disk_gb, make_work
from errors import UserError, printable, quoted
from safe_files import read_json, write_atomically
from training.run_directory import locked, process_in

PLACE = Path("out/.cloud")
"""Where deployments keep what they need here: who they are, the package, the pod's log."""

STOP_SECONDS = 600.0
"""That `stop` waits for the command that it stopped."""


def main(argv: list[str], clock: Clock | None = None) -> int:
    """Deploy, or one of the other commands; the exit status.

    0: trained, and the results are here. 1: failed. 2: a config error. 3: stopped at the cap or the
    wall limit. 4: a pod may be left. 128 + n: stopped by signal n. In all but 4 no pod is left.
    """
    clock = clock or Clock()
    if not argv or {"--help", "-h"} & set(argv):
        parser().print_help()
        return 0
    command = argv[0] if argv[0] in COMMANDS else "deploy"
    rest = argv[1:] if argv[0] in COMMANDS else argv
    if command == "deploy":
        return deploy(rest, clock)
    if command == "cost":
        return show_costs(rest)
    actions = {"status": status, "stop": stop, "sweep-orphans": sweep_orphans}
    redact = Redactor()
    return actions[command](rest, connected(redact, Request(argv=()).secrets)[0], clock)


def connected(redact: Redactor, secrets_file: str) -> tuple[RunPod, dict[str, str]]:
    """The API, and the secrets, which are hidden from here on."""
    secrets = read_secrets(Path(secrets_file))
    for name, value in secrets.items():
        redact.add(value)
        if len(value) < 6 and name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")):
            raise UserError(f"{name} has {len(value)} characters, too few for a secret.")
    return RunPod(api_key(secrets), redact, bounded), secrets


# Deploying


def deploy(argv: Sequence[str], clock: Clock) -> int:
    """Train in the cloud, or print the plan."""
    request = read_request(argv)
    redact = Redactor()
    api, secrets = connected(redact, request.secrets)
    work = make_work(request, redact)
    check_plan(api, request, work, clock)
    if request.dry_run:
        return 0
    identity = random_secrets.token_hex(5)
    with (
        StopSignals() as signals,
        locked(PLACE / "runs" / work.name),
        own_folder(identity, work, argv) as folder,
    ):
        around = Surroundings(clock, signals, _print, redact, secrets, folder, COST_LOG)
        ending = Deployment(identity, request, work, api, around).carry_out()
    _print(redact(ending.words))
    return ending.status


def check_plan(api: RunPod, request: Request, work: Work, clock: Clock) -> None:
    """Print the plan; UserError where it cannot be carried out. Costs nothing."""
    pause = clock.sleep
    try:
        account = patiently(api.account, pause)
        offers = patiently(
            lambda: api.offers(request.gpu_count, not request.community, request.spot), pause
        )
    except CloudError as error:
        raise UserError(f"RunPod does not answer: {error}") from None
    choice = choose(offers, request, Estimates(work, request))
    for line in plan_lines(work, request, choice, disk_gb(work)):
        _print(line)
    _print(
        f"Account: ${account.balance:.2f}, spending ${account.spend_per_hour:.2f}/h before this run"
    )
    tell_of_orphans(api, clock)
    if not request.max_wait or request.dry_run:
        refuse_if_none(choice, request)
    least = min((candidate.dollars for candidate in choice.candidates), default=0.0)
    if account.balance < least or account.balance <= 0:
        raise UserError(
            f"the account has ${account.balance:.2f}, and the run is estimated at ${least:.2f} at "
            "least; add funds."
        )


@contextlib.contextmanager
def own_folder(identity: str, work: Work, argv: Sequence[str]) -> Iterator[Path]:
    """The folder of a deployment here; the package and half-fetched files are gone after it."""
    folder = PLACE / identity
    folder.mkdir(parents=True, mode=0o700)
    about = {
        "deployment": identity,
        "run": work.name,
        "target": str(work.target),
        "process": os.getpid(),
        "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(argv),
    }
    write_atomically(folder / "deployment.json", [json.dumps(about, indent=1)])
    try:
        yield folder
    finally:
        shutil.rmtree(folder / "incoming", ignore_errors=True)
        with contextlib.suppress(OSError):
            (folder / "package.tar.gz").unlink(missing_ok=True)


def _print(line: str) -> None:
    """Print a line; a terminal that is closed ends nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True)


def tell_of_orphans(api: RunPod, clock: Clock) -> None:
    """Print a line if pods of a command that does not run any more are still there."""
    runs = {about["deployment"]: about for about in known_deployments()}
    left = [
        pod
        for pod in own_pods(api, clock)
        if deployment_of(pod) in runs and not is_live(runs[deployment_of(pod)])
    ]
    if left:
        names = ", ".join(pod.name for pod in left)
        _print(f"WARNING: nobody watches {names}; python -m cloud.runpod_deploy sweep-orphans")


# The other commands


def known_deployments() -> list[dict[str, Any]]:
    """What this folder knows of deployments, oldest first."""
    found = []
    for path in PLACE.glob("*/deployment.json"):
        with contextlib.suppress(OSError, UserError):
            about = read_json(path)
            if isinstance(about, dict) and {"deployment", "run", "process", "begun"} <= set(about):
                found.append(about)
    return sorted(found, key=lambda about: about["begun"])


def is_live(about: dict[str, Any]) -> bool:
    """Whether the command of a deployment still runs."""
    folder = PLACE / "runs" / about["run"]
    return folder.is_dir() and process_in(folder) == str(about["process"])


def own_pods(api: RunPod, clock: Clock) -> list[Pod]:
    """Every pod that any deployment has."""
    try:
        pods = patiently(api.pods, clock.sleep)
    except CloudError as error:
        raise UserError(f"RunPod does not answer: {error}") from None
    return [pod for pod in pods if pod.name.startswith(TAG)]


def deployment_of(pod: Pod) -> str:
    """The ID of the deployment that a pod's name says it belongs to."""
    return pod.name.removeprefix(TAG).rpartition("-")[0]


def status(argv: Sequence[str], api: RunPod, clock: Clock) -> int:
    """Print the pods of all deployments, and what the account has."""
    refuse_arguments("status", argv)
    runs = {about["deployment"]: about for about in known_deployments()}
    pods = own_pods(api, clock)
    for pod in pods:
        about = runs.get(deployment_of(pod))
        run = printable(about["run"]) if about else "not begun in this folder"
        whose = "watched" if about and is_live(about) else "NOT WATCHED: see sweep-orphans"
        price = "unknown price" if pod.cost_per_hour is None else f"${pod.cost_per_hour:.2f}/h"
        _print(
            f"{pod.id}  {pod.name}  {run}  {pod.state}  {pod.gpu}  {price}  up "
            f"{elapsed_text(pod.uptime)}  {whose}"
        )
    if not pods:
        _print("no pods of this project")
    with contextlib.suppress(CloudError):
        account = api.account()
        _print(f"account: ${account.balance:.2f}, spending ${account.spend_per_hour:.2f}/h")
    return 0


def stop(argv: Sequence[str], api: RunPod, clock: Clock) -> int:
    """Stop the deployment of a run: its command, which saves and fetches, or else its pods."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("stop takes the name of a run; status lists them.")
    matching = [
        about for about in known_deployments() if argv[0] in (about["run"], about["deployment"])
    ]
    if not matching:
        names = ", ".join(about["run"] for about in known_deployments()) or "none"
        raise UserError(f"there is no deployment {quoted(argv[0])} here; there are: {names}.")
    for about in matching:
        if is_live(about):
            os.kill(int(about["process"]), signal.SIGTERM)
            _print(f"asked process {about['process']} to save, fetch and remove the pod")
            end = clock.now() + STOP_SECONDS
            while is_live(about) and clock.now() < end:
                clock.sleep(1)
    ids = {about["deployment"] for about in matching}
    return remove(lambda: [p for p in own_pods(api, clock) if deployment_of(p) in ids], api, clock)


def sweep_orphans(argv: Sequence[str], api: RunPod, clock: Clock) -> int:
    """Remove the pods whose command does not run any more; with --all also those of deployments
    that this folder knows nothing of, such as another machine's."""
    if list(argv) not in ([], ["--all"]):
        raise UserError("sweep-orphans takes no argument but --all.")

    def orphans() -> list[Pod]:
        runs = {about["deployment"]: about for about in known_deployments()}
        pods = own_pods(api, clock)
        unknown = [pod for pod in pods if deployment_of(pod) not in runs]
        for pod in unknown if not argv else []:
            _print(f"{pod.id}  {pod.name}: not begun in this folder; --all removes it, too")
        return [
            pod
            for pod in pods
            if (pod in unknown and argv)
            or (pod not in unknown and not is_live(runs[deployment_of(pod)]))
        ]

    return remove(orphans, api, clock)


def remove(find: Callable[[], list[Pod]], api: RunPod, clock: Clock) -> int:
    """Remove pods until none is found; the exit status."""
    count = 0
    for _ in range(20):
        pods = find()
        if not pods:
            _print(f"removed {count} pod{'s' * (count != 1)}; none is left")
            return 0
        for pod in pods:
            count += 1
            try:
                api.terminate(pod.id)
            except CloudError as error:
                _print(f"{pod.id}: {error}")
        clock.sleep(3)
    _print(f"{len(pods)} pods are still there; remove them in RunPod's console")
    return PODS_LEFT


def show_costs(argv: Sequence[str]) -> int:
    """Print what every deployment cost, from the log of costs."""
    refuse_arguments("cost", argv)
    rows = costs(COST_LOG)
    for row in rows:
        _print(
            f"{row['timestamp']}  {row['deployment']}  {row['run']}  {row['state']}  "
            f"{elapsed_text(float(row['runtime_seconds']))}  ${float(row['cumulative_usd']):.2f}"
        )
    total = sum(float(row["cumulative_usd"]) for row in rows)
    _print(f"{len(rows)} deployments, ${total:.2f}")
    return 0


def refuse_arguments(command: str, argv: Sequence[str]) -> None:
    if argv:
        raise UserError(f"{command} takes no arguments: {quoted(list(argv))}.")


if __name__ == "__main__":
    run_cli(main)
