"""What a pod is created with: its spec and its environment variables."""

from __future__ import annotations

from cloud.parts import Parts
from cloud.plan import Candidate
from cloud.redaction import for_pod
from cloud.runpod_types import PodSpec
from cloud.start_command import start_command

PORT = 8000
MOUNT = "/workspace"
POD_HOME, POD_CODE = f"{MOUNT}/nanoarch", "/root/nanoarch"

SHELL_DELAY = 30.0
"""Seconds by which the shell's dead-man switch comes after the other."""


def pod_spec(name: str, candidate: Candidate, parts: Parts, token: str) -> PodSpec:
    """The spec of a pod whose dead-man switch has what is left of the limits now.

    Args:
        name: Of the pod.
        candidate: Where it is, and at what price.
        parts: The deployment.
        token: What the pod's server expects of requests.

    Raises:
        Interrupted, LimitReached: It is time to stop.
    """
    parts.stopping.check()  # what came before may have taken long
    request, offer = parts.request, candidate.offer
    return PodSpec(
        name=name,
        offer=offer,
        gpu_count=request.gpu_count,
        secure=not request.community,
        spot=request.spot,
        image=request.image,
        cuda=request.cuda,
        command=start_command(),
        disk_gb=parts.work.disk_gb if request.disk is None else request.disk,
        volume=request.volume(offer.region),
        mount=MOUNT,
        port=PORT,
        environment=for_pod(parts.around.secrets) | _environment(offer.price, parts, token),
    )


def _environment(price: float, parts: Parts, token: str) -> dict[str, str]:
    """The variables that `cloud/pod/` and the start script read."""
    seconds = parts.budget.seconds_left(price)
    deadline = parts.around.clock.date() + seconds
    return {
        "NANOARCH_RUN": parts.work.name,
        "NANOARCH_RESULTS": parts.work.results,
        "NANOARCH_DEPLOYMENT": parts.identity,
        "NANOARCH_TOKEN": token,
        "NANOARCH_PORT": str(PORT),
        "NANOARCH_HOME": POD_HOME,
        "NANOARCH_CODE": POD_CODE,
        "NANOARCH_SECONDS": f"{seconds:.1f}",
        "NANOARCH_DEADLINE": f"{deadline:.1f}",
        "NANOARCH_SHELL_SECONDS": f"{seconds + SHELL_DELAY:.0f}",
        "NANOARCH_SHELL_DEADLINE": f"{deadline + SHELL_DELAY:.0f}",
        "NANOARCH_DOLLARS": f"{parts.budget.dollars_left():.4f}",
    }
