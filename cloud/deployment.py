"""A deployment, from the search for a GPU to the downloaded results and the removal of all pods."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets as random_secrets
import traceback

from cloud.endings import (
    BAD,
    CONFIG_ERROR,
    DONE,
    FAILED,
    JOB_FAILED,
    LIMIT,
    LOST,
    PODS_LEFT,
    TRAINED,
    Ending,
    Outcome,
)
from cloud.failures import CloudError, Interrupted, LimitReached, Transient
from cloud.fetching import Fetching
from cloud.package import Package, make_package
from cloud.parts import Parts
from cloud.placement import Placement
from cloud.pod_environment import PORT
from cloud.pod_link import PodLink
from cloud.runpod_api import pod_address
from cloud.timekeeping import bounded
from cloud.watch import PodWatch
from errors import ConfigError, UserError

MOST_BAD_PODS = 3
"""Maximum number of pods that do not start, or fail before they train."""

MOST_LOST_PODS = 10
"""Maximum number of pods that are reclaimed or lost."""

RESERVE_SECONDS = 120.0
"""Seconds reserved for saving and downloading; at most a tenth of the remaining time."""


class Deployment:
    """Trains once, on several pods in turn if necessary.

    Args:
        parts: The parts of the deployment.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self._token = random_secrets.token_hex(24)
        parts.around.redact.add(self._token)
        self._fetching = Fetching(parts)
        self._placement = Placement(parts, self._token)
        self._bad = self._lost = 0

    # The whole deployment

    def carry_out(self) -> Ending:
        """Run the deployment, and remove all pods whatever happens."""
        budget = self._parts.budget
        ending = Ending(FAILED, "failed: it did not begin.")
        try:
            ending = self._guarded()
        finally:
            none_left = self._remove_pods()
            with contextlib.suppress(Exception):
                self._parts.costs.note("ended", budget.spent())
        if not none_left:
            ending = Ending(PODS_LEFT, f"{ending.words} {self._warning()}")
        left = " No pod is left." if none_left else ""
        total = f"{budget.elapsed() / 3600:.2f} h, ${budget.spent():.2f}."
        return Ending(ending.status, f"{ending.words} {total}{left}")

    def _guarded(self) -> Ending:
        """Train; every exception becomes an ending."""
        came, redact = self._fetching, self._parts.around.redact
        try:
            return self._train()
        except Interrupted:
            signal = self._parts.around.signals.first
            if signal is None:
                return Ending(FAILED, "failed: a call was given up without a signal.")
            return Ending(128 + signal, f"stopped by {signal.name}{came.what_came}.")
        except LimitReached as error:
            return Ending(LIMIT, f"stopped at {error}{came.what_came}.")
        except ConfigError as error:
            return Ending(CONFIG_ERROR, redact(error))
        except (UserError, CloudError) as error:
            words = redact(error).removesuffix(".")
            return Ending(FAILED, f"failed: {words}{came.what_came}.")
        except BaseException as error:  # a bug must not keep a pod alive
            self._parts.say(traceback.format_exc())
            words = f"failed: an error in this program ({type(error).__name__})"
            return Ending(FAILED, f"{words}{came.what_came}.")

    def _remove_pods(self) -> bool:
        """Remove every pod; False if one may be left. Retries after any error."""
        for _ in range(3):
            try:
                return self._parts.pods.close()
            except BaseException as error:
                self._parts.say(f"removing pods: {type(error).__name__}: {error}")
        return False

    def _warning(self) -> str:
        return (
            f"WARNING: pods named {self._parts.pods.prefix}* MAY STILL RUN AND COST MONEY. Their "
            "dead-man switch removes them at the limits; to remove them now: python -m "
            f"cloud.runpod_deploy stop {self._parts.work.name}, or RunPod's console."
        )

    # Training

    def _train(self) -> Ending:
        work, path = self._parts.work, self._parts.around.folder / "package.tar.gz"
        package = make_package(work.contents, path)
        while True:
            watch = self._rent(package)
            outcome = self._watched(watch)
            if outcome.kind == DONE:
                return self._bring_home(watch)
            self._parts.say(f"pod {watch.rental.pod_id}: {outcome.words}")
            if outcome.kind == JOB_FAILED:
                return self._job_failed(watch, outcome)
            if self._save_lost(watch):
                return self._trained()
            self._refuse_too_many(outcome)
            if not self._parts.pods.remove_all():
                raise CloudError(f"pod {watch.rental.pod_id} is not known to be gone")
            if self._fetching.came and not self._parts.request.volumes:
                contents = dataclasses.replace(work.contents, carried=work.fetched_parts())
                package = make_package(contents, path)

    def _rent(self, package: Package) -> PodWatch:
        """Create a pod and return its watch."""
        rented = self._placement.find()
        link = PodLink(
            pod_address(rented.pod_id, PORT),
            self._token,
            bounded,
            self._parts.stopping.interrupted,
        )
        return PodWatch(self._parts, rented, link, package, self._fetching.checkpoint)

    def _watched(self, watch: PodWatch) -> Outcome:
        """The outcome of a pod. When it is time to stop, it first saves what it can."""
        stopping = self._parts.stopping
        left = self._parts.budget.seconds_left()
        stopping.kept_back = max(0.0, min(RESERVE_SECONDS, left / 10))
        try:
            return watch.until_over()
        except (Interrupted, LimitReached):
            self._save(watch)
            raise
        finally:
            stopping.kept_back = 0.0

    def _save(self, watch: PodWatch) -> None:
        """Ask a pod to save and download the results, unless time runs out or another signal
        arrives."""
        self._parts.stopping.kept_back = 0.0
        self._parts.stopping.allow_signals()
        if not watch.status.trains:
            return
        with contextlib.suppress(CloudError, UserError):
            watch.stop(RESERVE_SECONDS)
        with contextlib.suppress(CloudError, UserError):
            self._fetching.fetch(watch.link, tries=2)

    def _save_lost(self, watch: PodWatch) -> bool:
        """Save the work of a pod that is no longer usable; True if nothing was lost."""
        region = watch.rental.candidate.offer.region
        if watch.status.phase == "stopped":  # its server still answers
            self._fetching.checkpoint(watch.link)
        elif not watch.status.trains:
            return False
        if self._parts.request.volumes:  # what it saved is only there
            self._placement.region = region
        return self._fetching.all_from_volume(region)

    def _refuse_too_many(self, outcome: Outcome) -> None:
        """Raise CloudError if too many pods were unusable."""
        self._bad += outcome.kind == BAD
        self._lost += outcome.kind == LOST
        if self._bad >= MOST_BAD_PODS or self._lost >= MOST_LOST_PODS:
            count = self._bad + self._lost
            raise CloudError(f"{count} pods were of no use, the last one: {outcome.words}")

    # The results

    def _bring_home(self, watch: PodWatch) -> Ending:
        """Download the results of a finished job. Since they are paid for, a first signal does not
        end the download."""
        self._parts.stopping.allow_signals(at_least=1)
        try:
            self._fetching.all_from_pod(watch)
        except (Transient, UserError, LimitReached) as error:
            if not self._fetching.all_from_volume(watch.rental.candidate.offer.region):
                words = f"{error}: trained, but the results could not be downloaded"
                raise (LimitReached if isinstance(error, LimitReached) else CloudError)(
                    words
                ) from None
        else:
            with contextlib.suppress(CloudError):
                watch.link.finish()
        return self._trained()

    def _trained(self) -> Ending:
        loss = f": {self._fetching.loss}" if self._fetching.loss else ""
        return Ending(TRAINED, f"done{loss}; results in {self._parts.work.target}.")

    def _job_failed(self, watch: PodWatch, outcome: Outcome) -> Ending:
        """The ending for a job that failed, with the location of results and the end of the log."""
        if outcome.words.startswith("train"):
            with contextlib.suppress(CloudError, UserError):
                self._fetching.fetch(watch.link, tries=2)
        for line in watch.log_tail():
            self._parts.say(f"  | {line}")
        return Ending(FAILED, f"failed: {outcome.words}{self._fetching.what_came}.")
