"""One deployment, from the search for a GPU to the results at home and no pod left."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets as random_secrets
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cloud.budget import Budget
from cloud.cost_log import CostLog
from cloud.failures import CloudError, Interrupted, LimitReached, NoCapacity, Refused, Transient
from cloud.live_view import LiveView
from cloud.own_pods import OwnPods
from cloud.package import Package, make_package
from cloud.plan import Candidate, Estimates, choose, refuse_if_none
from cloud.pod_link import PodLink
from cloud.redaction import Redactor, for_pod
from cloud.request import Request
from cloud.results import fetch
from cloud.retries import patiently, pause_before
from cloud.runpod_api import PodSpec, RunPod, pod_address
from cloud.start_command import start_command
from cloud.timekeeping import NOTICED_WITHIN, Clock, StopSignals, bounded
from cloud.volume_files import VolumeFiles
from cloud.watch import BAD, DONE, LOST, Outcome, PodWatch
from cloud.work import Work, disk_gb
from errors import ConfigError, UserError
from training_logger import RUN_FILE, read_run

TRAINED, FAILED, CONFIG, LIMIT, PODS_LEFT = 0, 1, 2, 3, 4
"""Exit statuses; a signal's is 128 + its number."""

MOST_BAD_PODS = 3
"""Pods that do not come up, or fail before they train, after which it is no accident."""

MOST_LOST_PODS = 10
"""Pods reclaimed or lost while they trained."""

MOST_FAILED_CREATIONS = 8
"""In a row, without a reply that tells what became of them."""

FETCH_PATIENCE = 1800.0
"""Seconds for which fetching the results of a job that is done is tried again."""

ROUND_SECONDS = 60.0
"""Between two rounds over all candidates, with --wait."""

RESERVE_SECONDS = 120.0
"""Kept of the limits for saving and fetching, a tenth of them at most."""

PORT = 8000
MOUNT = "/workspace"
POD_HOME, POD_CODE = f"{MOUNT}/nanoarch", "/root/nanoarch"


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a deployment ended: the exit status, and what is said last."""

    status: int
    words: str


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a deployment works with.

    Attributes:
        clock: The time.
        signals: Those that ask to stop.
        say: Prints a line.
        redact: Hides secrets.
        secrets: By name.
        folder: Of its own files here.
        cost_log: The file of costs.
    """

    clock: Clock
    signals: StopSignals
    say: Callable[[str], None]
    redact: Redactor
    secrets: Mapping[str, str]
    folder: Path
    cost_log: Path


class Deployment:
    """Trains once, on one pod after the other if need be.

    Args:
        identity: Letters and digits that no other deployment has.
        request: What is asked.
        work: What is to be done.
        api: RunPod.
        around: What it works with.
    """

    def __init__(
        self, identity: str, request: Request, work: Work, api: RunPod, around: Surroundings
    ):
        self.identity = identity
        self.request, self.work, self.api, self.around = request, work, api, around
        self.budget = Budget(request.max_cost, request.max_hours, around.clock)
        self.pods = OwnPods(api, identity, self.budget, around.clock, self.say)
        self.costs = CostLog(around.cost_log, identity, work.name, self.budget, self.say)
        self.view = LiveView(self.say, self.budget)
        self._estimates = Estimates(work, request)
        self._disk = disk_gb(work)
        self._token = random_secrets.token_hex(24)
        around.redact.add(self._token)
        self._signals_allowed = 0
        self.kept_back = 0.0
        self._fetched = False
        self._limited = True
        self._region: str | None = None
        self._has_rented = False
        api.given_up = self._interrupted

    # To the end

    def carry_out(self) -> Ending:
        """Do all of it, and leave no pod whatever happens."""
        ending = Ending(FAILED, "it did not begin")
        try:
            ending = self._guarded()
        finally:
            none_left = self._remove_pods()
            with contextlib.suppress(Exception):
                self.costs.note("ended", self.budget.spent())
        if not none_left:
            ending = Ending(PODS_LEFT, f"{ending.words}; {self._warning()}")
        left = " No pod is left." if none_left else ""
        hours, dollars = self.budget.elapsed() / 3600, self.budget.spent()
        return Ending(ending.status, f"{ending.words} {hours:.2f} h, ${dollars:.2f}.{left}")

    def _guarded(self) -> Ending:
        """The deployment, every exception turned into an ending."""
        try:
            return self._train()
        except Interrupted:
            signal = self.around.signals.first
            if signal is None:
                return Ending(FAILED, "stopped: a call was given up without a signal.")
            return Ending(128 + signal, f"stopped by {signal.name}{self._what_came()}.")
        except LimitReached as error:
            return Ending(LIMIT, f"stopped at {error}{self._what_came()}.")
        except ConfigError as error:
            return Ending(CONFIG, self.around.redact(error))
        except (UserError, CloudError) as error:
            return Ending(FAILED, f"failed: {self.around.redact(error).removesuffix('.')}.")
        except BaseException as error:  # an error of our own must not keep a pod alive
            self.say(traceback.format_exc())
            return Ending(FAILED, f"failed: an error of this program ({type(error).__name__}).")

    def _remove_pods(self) -> bool:
        """Remove every pod; False where that could not be seen. Tries again after any error."""
        for _ in range(3):
            try:
                return self.pods.close()
            except BaseException as error:
                self.say(f"removing pods: {type(error).__name__}: {error}")
        return False

    def _what_came(self) -> str:
        return f"; what was saved is in {self.work.target}" if self._fetched else ""

    def _warning(self) -> str:
        return (
            f"WARNING: pods named {self.pods.prefix}* MAY STILL RUN AND COST MONEY. Their dead-man "
            "switch removes them when the limits are reached; to do it now: python -m "
            f"cloud.runpod_deploy stop {self.work.name}, or RunPod's console."
        )

    def say(self, text: str) -> None:
        self.around.say(self.around.redact(text))

    # Waiting

    def _interrupted(self) -> bool:
        return self.around.signals.count > self._signals_allowed

    def check(self) -> None:
        """Raise Interrupted or LimitReached where it is time to stop."""
        if self._interrupted():
            raise Interrupted("a signal asked to stop")
        if self._limited and self.budget.seconds_left() <= self.kept_back:
            raise LimitReached(self.budget.limit())

    def pause(self, seconds: float) -> None:
        """Wait, unless it is time to stop."""
        clock = self.around.clock
        end = clock.now() + seconds
        self.check()
        while (left := end - clock.now()) > 0:
            clock.sleep(min(left, NOTICED_WITHIN))
            self.check()

    # Training

    def _train(self) -> Ending:
        package = make_package(self.work.contents, self.around.folder / "package.tar.gz")
        bad = lost = 0
        while True:
            watch = self._place(package)
            outcome = self._watched(watch)
            if outcome.kind == DONE:
                return self._bring_home(watch)
            self.say(f"pod {watch.pod_id}: {outcome.words}")
            bad, lost = bad + (outcome.kind == BAD), lost + (outcome.kind == LOST)
            if outcome.kind not in (BAD, LOST):
                return self._failed(watch, outcome)
            if watch.trains and self._fetch_from_volume(watch):
                return self._trained()
            if watch.trains and self.request.volumes:  # what it saved is there alone
                self._region = watch.candidate.offer.region
            if bad >= MOST_BAD_PODS or lost >= MOST_LOST_PODS:
                raise CloudError(f"{bad + lost} pods in a row were of no use: {outcome.words}")
            if not self.pods.remove_all():
                raise CloudError(f"pod {watch.pod_id} is not seen to be gone")
            if self._carries():
                contents = dataclasses.replace(
                    self.work.contents, carried=self.work.fetched_parts()
                )
                package = make_package(contents, package.path)

    def _carries(self) -> bool:
        """Whether a new pod is sent what was fetched of the run."""
        return self._fetched and not self.request.volumes

    def _watched(self, watch: PodWatch) -> Outcome:
        """What becomes of a pod; where it is time to stop, what can be saved is saved first."""
        self.kept_back = max(0.0, min(RESERVE_SECONDS, self.budget.seconds_left() / 10))
        try:
            return watch.until_over()
        except (Interrupted, LimitReached):
            self._save(watch)
            raise
        finally:
            self.kept_back = 0.0

    def _save(self, watch: PodWatch) -> None:
        """Have a pod save and bring that home, as far as time and a further signal allow."""
        self.kept_back, self._signals_allowed = 0.0, self.around.signals.count
        if watch.trains:
            with contextlib.suppress(CloudError, UserError):
                watch.stop(RESERVE_SECONDS)
            with contextlib.suppress(CloudError, UserError):
                self._fetch(watch.link, tries=2)

    def _bring_home(self, watch: PodWatch) -> Ending:
        """Fetch the results of a job that is done."""
        try:
            self._fetch_patiently(watch)
        except (Transient, UserError, LimitReached) as error:
            if not self._fetch_from_volume(watch):
                words = f"{error}: trained, but the results could not be fetched"
                raise (LimitReached if isinstance(error, LimitReached) else CloudError)(
                    words
                ) from None
        else:
            with contextlib.suppress(CloudError):
                watch.link.finish()
        return self._trained()

    def _trained(self) -> Ending:
        return Ending(TRAINED, f"done{self._loss()}; results in {self.work.target}.")

    def _fetch_patiently(self, watch: PodWatch) -> None:
        """Fetch what may be nowhere but in the pod, though the network or this disk fails for a
        while; not if the pod is gone."""
        end, attempt = self.around.clock.now() + FETCH_PATIENCE, 0
        while True:
            try:
                return self._fetch(watch.link, tries=1)
            except (Transient, UserError) as error:
                attempt += 1
                if self.around.clock.now() >= end or watch.is_gone():
                    raise
                self.say(f"the results cannot be fetched now: {error}")
                self.pause(pause_before(attempt))

    def _fetch_from_volume(self, watch: PodWatch) -> bool:
        """Bring home the results of a job that is done from its volume, if there is one; the pod
        is removed first, so no limit applies."""
        volume = self._volume_files(watch)
        if volume is None or not self.pods.remove_all():
            return False
        self._limited = False
        try:
            done = patiently(volume.done, self.pause, tries=3)
            if (done.get("deployment"), done.get("phase")) != (self.identity, "done"):
                return False
            self._fetch(volume, tries=6)
        except Transient as error:
            self.say(f"the volume: {error}")
            return False
        finally:
            self._limited = True
        return True

    def _volume_files(self, watch: PodWatch) -> VolumeFiles | None:
        """The volume of a pod, where it has one that can be read."""
        region = watch.candidate.offer.region
        volume = self.request.volume(region)
        if volume is None or region is None:
            return None
        folder = f"nanoarch/{self.work.name}"
        try:
            return VolumeFiles(
                region, volume, folder, self.work.results, self.around.secrets, bounded
            )
        except UserError as error:
            self.say(str(error))
            return None

    def _failed(self, watch: PodWatch, outcome: Outcome) -> Ending:
        """The end of a job that failed, with what it left and the end of its log."""
        with contextlib.suppress(CloudError, UserError):
            self._fetch(watch.link, tries=2)
        for line in watch.log_tail():
            self.say(f"  | {line}")
        return Ending(FAILED, f"failed: {outcome.words}{self._what_came()}.")

    def _fetch(self, source: Any, tries: int) -> None:
        scratch = self.around.folder / "incoming"
        count = patiently(
            lambda: fetch(source, self.work.target, scratch, self.pause), self.pause, tries
        )
        self._fetched = self._fetched or count > 0

    def fetch_checkpoint(self, watch: PodWatch) -> None:
        """Bring home what a new pod would go on with. A failure is told and changes nothing."""
        try:
            self._fetch(watch.link, tries=2)
        except (Transient, UserError) as error:
            self.say(f"the checkpoint could not be fetched now: {error}")

    def _loss(self) -> str:
        """The final validation loss, as the log says it."""
        if self.request.sweep:
            return ""
        try:
            loss = read_run(self.work.target / RUN_FILE)["summary"]["final_val_loss"]
            return f": validation loss {loss:.4f} nats"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    # Finding a GPU

    def _place(self, package: Package) -> PodWatch:
        """A pod on the best candidate that there is.

        Raises:
            CloudError: There is none.
        """
        begun, failures = self.around.clock.now(), 0
        while True:
            tried, others = 0, self._unexplained_spending()
            for candidate in self._candidates():
                self.check()
                tried += 1
                try:
                    watch = self._try(candidate, package, others)
                except NoCapacity as error:
                    self.say(f"{_where(candidate)}: no capacity ({error})")
                    continue
                except Transient as error:
                    failures += 1
                    self.say(f"{_where(candidate)}: {error}")
                    if failures >= MOST_FAILED_CREATIONS:
                        raise
                    self.pause(pause_before(failures))
                    continue
                return watch
            waited = self.around.clock.now() - begun
            if waited >= self.request.max_wait:
                how = "" if self.request.max_wait else "; --wait goes on looking"
                raise CloudError(f"no capacity in {tried} places{how}")
            self.costs.note("waiting", self.budget.spent())
            self.pause(min(ROUND_SECONDS, max(1.0, self.request.max_wait - waited)))

    def _candidates(self) -> Iterator[Candidate]:
        """The candidates at today's prices that what is left of the limits allows."""
        offers = patiently(
            lambda: self.api.offers(
                self.request.gpu_count, not self.request.community, self.request.spot
            ),
            self.pause,
        )
        choice = choose(offers, self.request, self._estimates)
        if not self.request.max_wait:
            refuse_if_none(choice, self.request)
        fitting = [candidate for candidate in choice.candidates if self._fits(candidate)]
        if choice.candidates and not fitting:
            raise LimitReached(f"{self.budget.limit()}, within which no run would end any more")
        yield from (c for c in fitting if self._region in (None, c.offer.region))

    def _fits(self, candidate: Candidate) -> bool:
        """Whether a run would end within what is left of the limits; one that has begun has less to
        do than was estimated."""
        left = self.budget.seconds_left(candidate.offer.price)
        return left > (0 if self._has_rented else 3600 * candidate.hours)

    def _try(self, candidate: Candidate, package: Package, others: float | None) -> PodWatch:
        """Create a pod there, and return its watch."""
        self.say(f"{_where(candidate)}: renting at ${candidate.offer.price:.2f}/h")
        pod_id, name = self.pods.create(lambda name: self._spec(name, candidate))
        self._has_rented = True
        self.costs.note("starting", candidate.dollars)
        link = PodLink(pod_address(pod_id, PORT), self._token, bounded, self._interrupted)
        return PodWatch(self, pod_id, name, candidate, link, package, others)

    def _unexplained_spending(self) -> float | None:
        """Dollars per hour that the account spends besides pods; None where that is not known."""
        try:
            pods = self.api.pods()
            spending = self.api.account().spend_per_hour
        except (Transient, Refused):
            return None
        return spending - sum(pod.cost_per_hour or 0.0 for pod in pods if pod.state == "RUNNING")

    def _spec(self, name: str, candidate: Candidate) -> PodSpec:
        self.check()  # what came before may have taken long
        offer, clock = candidate.offer, self.around.clock
        seconds = self.budget.seconds_left(offer.price)
        environment = {
            "NANOARCH_RUN": self.work.name,
            "NANOARCH_RESULTS": self.work.results,
            "NANOARCH_DEPLOYMENT": self.identity,
            "NANOARCH_TOKEN": self._token,
            "NANOARCH_PORT": str(PORT),
            "NANOARCH_HOME": POD_HOME,
            "NANOARCH_CODE": POD_CODE,
            "NANOARCH_SECONDS": f"{seconds:.1f}",
            "NANOARCH_BASH_SECONDS": f"{seconds + 30:.0f}",
            "NANOARCH_DEADLINE": f"{clock.date() + seconds:.1f}",
            "NANOARCH_DOLLARS": f"{self.budget.dollars_left():.4f}",
        }
        return PodSpec(
            name=name,
            offer=offer,
            gpu_count=self.request.gpu_count,
            secure=not self.request.community,
            spot=self.request.spot,
            image=self.request.image,
            command=start_command(),
            disk_gb=self._disk,
            volume=self.request.volume(offer.region),
            mount=MOUNT,
            port=PORT,
            environment=for_pod(self.around.secrets) | environment,
        )


def _where(candidate: Candidate) -> str:
    return f"{candidate.offer.gpu} in {candidate.offer.region or 'any place'}"
