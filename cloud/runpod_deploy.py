"""Train in the cloud: `python -m cloud.runpod_deploy`. docs/cloud.md describes it."""

from __future__ import annotations

import secrets as random_secrets
from collections.abc import Sequence
from pathlib import Path

from cli import discard_output, run_cli
from cloud.cost_log import COST_LOG
from cloud.deployment import Deployment
from cloud.make_work import make_work
from cloud.other_commands import show_costs, status, stop, sweep_orphans
from cloud.parts import Surroundings, make_parts
from cloud.preflight import check_plan
from cloud.records import recorded
from cloud.redaction import SECRETS_FILE, SHORTEST, Redactor, api_key, read_secrets
from cloud.request import COMMANDS, parser, read_request
from cloud.runpod_api import RunPod
from cloud.timekeeping import Clock, StopSignals, bounded
from errors import UserError, unknown_name

ACTIONS = {"status": status, "stop": stop, "sweep-orphans": sweep_orphans}


def main(argv: list[str], clock: Clock | None = None) -> int:
    """Deploy, or carry out one of the other commands. Returns the exit status.

    0: trained, and the results are here. 1: failed. 2: config error. 3: stopped at the cost cap or
    the time limit. 4: a pod may be left; otherwise none is. 128 + n: stopped by signal n.
    """
    clock = clock or Clock()
    if not argv or {"--help", "-h"} & set(argv):
        parser().print_help()
        return 0
    command, rest = (argv[0], argv[1:]) if argv[0] in COMMANDS else ("deploy", argv)
    if argv[0].isalpha() and argv[0] not in COMMANDS and not Path(argv[0]).exists():
        raise UserError(unknown_name("command", argv[0], COMMANDS))
    if command == "cost":
        return show_costs(rest, _print)
    if command == "deploy":
        return deploy(rest, clock)
    redact = Redactor()
    api, _ = connected(redact, SECRETS_FILE)
    return ACTIONS[command](rest, api, clock, lambda text: _print(redact(text)))


def deploy(argv: Sequence[str], clock: Clock) -> int:
    """Train in the cloud, or print the plan. Returns the exit status."""
    request = read_request(argv)
    redact = Redactor()
    api, secrets = connected(redact, request.secrets)
    work = make_work(request, redact)
    check_plan(api, request, work, clock, lambda text: _print(redact(text)))
    if request.dry_run:
        _print("Dry run: nothing was rented.")
        return 0
    identity = random_secrets.token_hex(5)
    with StopSignals() as signals, recorded(identity, work, argv) as folder:
        around = Surroundings(clock, signals, _print, redact, secrets, folder, COST_LOG)
        ending = Deployment(make_parts(identity, request, work, api, around)).carry_out()
    _print(redact(ending.words))
    return ending.status


def connected(redact: Redactor, secrets_file: str) -> tuple[RunPod, dict[str, str]]:
    """The API, and the secrets, which are hidden from now on."""
    secrets = read_secrets(Path(secrets_file))
    for name, value in secrets.items():
        redact.add(value)
        is_short = len(value) < SHORTEST
        if is_short and name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")):
            raise UserError(f"{name} has {len(value)} characters, too few for a secret.")
    return RunPod(api_key(secrets), redact, bounded), secrets


def _print(line: str) -> None:
    """Print a line. If nobody can read it, as in a closed terminal, the deployment continues."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        discard_output()
    except (OSError, ValueError):  # a full disk, or a terminal that is gone
        pass


if __name__ == "__main__":
    run_cli(main)
