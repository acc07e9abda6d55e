"""Objects shared by the parts of one deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from cloud.budget import Budget
from cloud.cost_log import CostLog
from cloud.live_view import LiveView
from cloud.own_pods import OwnPods
from cloud.redaction import Redactor
from cloud.request import Request
from cloud.runpod_api import RunPod
from cloud.stopping import Stopping
from cloud.timekeeping import Clock, StopSignals
from cloud.work import Work


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """The environment of a deployment.

    Attributes:
        clock: The clock.
        signals: The signals that ask to stop.
        print_line: Prints a line.
        redact: Hides secrets.
        secrets: The secrets by name.
        folder: Folder for the deployment's files on this machine.
        cost_log: Path of the cost log.
    """

    clock: Clock
    signals: StopSignals
    print_line: Callable[[str], None]
    redact: Redactor
    secrets: Mapping[str, str]
    folder: Path
    cost_log: Path

    def say(self, text: str) -> None:
        """Print a line without secrets."""
        self.print_line(self.redact(text))


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of one deployment.

    Attributes:
        identity: ID of the deployment.
        request: The user's request.
        work: The work of the pod.
        api: RunPod's API.
        around: The environment of the deployment.
        budget: The amounts spent.
        stopping: Waits, and raises when it is time to stop.
        pods: The deployment's pods.
        costs: The cost log.
        view: The console output.
    """

    identity: str
    request: Request
    work: Work
    api: RunPod
    around: Surroundings
    budget: Budget
    stopping: Stopping
    pods: OwnPods
    costs: CostLog
    view: LiveView

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a line without secrets."""
        return self.around.say


def make_parts(
    identity: str, request: Request, work: Work, api: RunPod, around: Surroundings
) -> Parts:
    """The parts of a deployment. Its time limit starts now.

    Args:
        identity: Ten hexadecimal digits that no other deployment has.
        request: The user's request.
        work: The work of the pod.
        api: RunPod's API. From now on its calls end when a signal asks to stop.
        around: The environment of the deployment.
    """
    budget = Budget(request.max_cost, request.max_hours, around.clock)
    stopping = Stopping(around.clock, around.signals, budget)
    costs = CostLog(around.cost_log, identity, work.name, budget, around.say)
    stopping.on_wait = costs.repeat
    api.given_up = stopping.interrupted
    return Parts(
        identity=identity,
        request=request,
        work=work,
        api=api,
        around=around,
        budget=budget,
        stopping=stopping,
        pods=OwnPods(api, identity, budget, around.clock, around.say, costs.repeat),
        costs=costs,
        view=LiveView(around.say, budget),
    )
