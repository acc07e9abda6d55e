"""Download a deployment's results to this machine, from a pod or from its volume."""

from __future__ import annotations

from cloud.failures import AnotherRun, Transient
from cloud.parts import Parts
from cloud.pod_link import PodLink
from cloud.results import Source, fetch
from cloud.retries import patiently, pause_before
from cloud.timekeeping import bounded
from cloud.volume_files import VolumeFiles
from cloud.watch import PodWatch
from errors import UserError
from training_logger import RUN_FILE, read_run

PATIENCE = 1800.0
"""Seconds for which downloading the results of a finished job is retried."""


class Fetching:
    """Downloads results.

    Attributes:
        came: Whether any file was downloaded.

    Args:
        parts: The deployment.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self.came = False

    @property
    def what_came(self) -> str:
        """The end of a sentence: where the results are and their loss; empty without results."""
        if not self.came:
            return ""
        loss = f" ({self.loss})" if self.loss else ""
        return f"; what was saved is in {self._parts.work.target}{loss}"

    @property
    def loss(self) -> str:
        """The last validation loss of the downloaded run as text; empty if it has none."""
        if self._parts.request.sweep:
            return ""
        try:
            loss = read_run(self._parts.work.target / RUN_FILE)["summary"]["final_val_loss"]
            return f"validation loss {loss:.4f} nats"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def fetch(self, source: Source, tries: int) -> None:
        """Download the results from a source.

        Raises:
            Transient: If it does not respond.
            AnotherRun: If its results are from another run than those of this name on this machine.
            UserError: If a file cannot be written.
            Interrupted, LimitReached: If it is time to stop.
        """
        work, pause = self._parts.work, self._parts.stopping.pause
        scratch = self._parts.around.folder / "incoming"
        count = patiently(
            lambda: fetch(source, work.target, work.parts, scratch, pause), pause, tries
        )
        self.came = self.came or count > 0

    def checkpoint(self, link: PodLink) -> None:
        """Download the files from which another pod would continue. Failures are reported and
        ignored, except AnotherRun, because continuing would be useless."""
        try:
            self.fetch(link, tries=2)
        except AnotherRun:
            raise
        except (Transient, UserError) as error:
            self._parts.say(f"the checkpoint could not be downloaded: {error}")

    def all_from_pod(self, watch: PodWatch) -> None:
        """Download the results of a finished job, which may exist only in the pod. Retries if the
        network or this disk fails for a while; gives up if the pod is gone."""
        clock = self._parts.around.clock
        end, attempt = clock.now() + PATIENCE, 0
        while True:
            try:
                return self.fetch(watch.link, tries=1)
            except AnotherRun:
                raise
            except (Transient, UserError) as error:
                attempt += 1
                if clock.now() >= end or watch.rental.is_gone():
                    raise
                self._parts.say(f"the results cannot be downloaded now: {error}")
                self._parts.stopping.pause(pause_before(attempt))

    def all_from_volume(self, region: str | None) -> bool:
        """Download the results of a finished job from the volume of a data center; returns whether
        that succeeded. The pod is removed first, so no limit applies."""
        volume = self._volume_files(region)
        if volume is None or not self._parts.pods.remove_all():
            return False
        try:
            with self._parts.stopping.unlimited():
                done = patiently(volume.done, self._parts.stopping.pause, tries=3)
                if (done.get("deployment"), done.get("phase")) != (self._parts.identity, "done"):
                    return False
                self.fetch(volume, tries=6)
        except (Transient, UserError) as error:
            self._parts.say(f"network volume: {error}")
            return False
        return True

    def _volume_files(self, region: str | None) -> VolumeFiles | None:
        """The volume in a data center, if there is one that can be read from here."""
        work, volume = self._parts.work, self._parts.request.volume(region)
        if volume is None or region is None:
            return None
        folder, secrets = f"nanoarch/{work.name}", self._parts.around.secrets
        try:
            return VolumeFiles(region, volume, folder, work.results, secrets, bounded)
        except UserError as error:
            self._parts.say(str(error))
            return None
