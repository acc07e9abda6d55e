"""What is checked before anything costs money."""

from __future__ import annotations

from cloud.failures import CloudError
from cloud.other_commands import Say, orphans
from cloud.plan import Choice, Estimates, choose, plan_lines, refuse_if_none
from cloud.request import Request
from cloud.retries import patiently
from cloud.runpod_api import RunPod
from cloud.runpod_types import Account
from cloud.timekeeping import Clock
from cloud.work import Work
from errors import UserError


def check_plan(api: RunPod, request: Request, work: Work, clock: Clock, say: Say) -> None:
    """Print the plan. Rents nothing.

    Raises:
        UserError: The plan cannot be carried out, or RunPod does not answer.
    """
    try:
        account = patiently(api.account, clock.sleep)
        patiently(lambda: _check_places(api, request), clock.sleep)
        offers = patiently(
            lambda: api.offers(request.gpu_count, not request.community, request.spot), clock.sleep
        )
    except CloudError as error:
        raise UserError(f"RunPod does not answer: {error}") from None
    choice = choose(offers, request, Estimates(work, request))
    for line in plan_lines(work, request, choice):
        say(line)
    say(f"Account: ${account.balance:.2f}, spending ${account.spend_per_hour:.2f}/h now")
    dead, _ = orphans(api, clock)
    if dead:
        names = ", ".join(pod.name for pod in dead)
        say(f"WARNING: nothing watches {names}; run python -m cloud.runpod_deploy sweep-orphans")
    if not request.max_wait or request.dry_run:
        refuse_if_none(choice, request)
    _check_balance(account, choice, request, say)


def _check_places(api: RunPod, request: Request) -> None:
    """Refuse data centers and network volumes that do not exist: --wait would wait for them."""
    if request.regions:
        regions = api.regions()
        unknown = sorted(set(request.regions) - set(regions))
        if unknown:
            raise UserError(
                f"--regions: RunPod has no data center {', '.join(unknown)}; it has "
                f"{', '.join(regions)}."
            )
    if not request.volumes:
        return
    volumes = {volume.id: volume.region for volume in api.volumes()}
    for region, volume in request.volumes:
        if volumes.get(volume) != region:
            known = ", ".join(f"{place}={name}" for name, place in volumes.items()) or "none"
            raise UserError(
                f"--volumes: the account has no network volume {volume} in {region}; it has "
                f"{known}."
            )


def _check_balance(account: Account, choice: Choice, request: Request, say: Say) -> None:
    least = min((candidate.dollars for candidate in choice.candidates), default=0.0)
    if account.balance < least or account.balance <= 0:
        raise UserError(
            f"the account has ${account.balance:.2f}, and the run is estimated at ${least:.2f} or "
            "more; add funds."
        )
    if account.balance < request.max_cost:
        say(
            f"Note: the balance is below --max_cost; RunPod stops pods when it is used up, which "
            f"may be before ${request.max_cost:.2f}."
        )
