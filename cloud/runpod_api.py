"""RunPod's API, through its SDK: the one module that knows that SDK.

The SDK is imported when the first `RunPod` is made, since that takes a second. It prints its
arguments into the text of GraphQL queries without escaping them, and its `QueryError` carries the
query, secrets included, so no error of the SDK leaves this module: it raises those of `failures`,
with the message of the server, redacted and shortened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cloud.failures import CloudError, NoCapacity, Refused, Transient
from cloud.redaction import Redactor
from errors import UserError, printable

REPLY_SECONDS = 45.0
"""How long a call may take; the SDK itself waits 30 s for each part of a reply."""

POD_ADDRESS = "https://{pod}-{port}.proxy.runpod.net"
"""Where a pod's HTTP port is; the environment variable RUNPOD_POD_ADDRESS changes it."""

ON_DEMAND, SPOT = "podFindAndDeployOnDemand", "podRentInterruptable"
"""The mutations that create a pod."""

NO_CAPACITY = (
    r"no longer any instances|no instances|resources to deploy|no.{0,20}available|"
    r"not available|out of stock|capacity|does not have the resources|unavailable in"
)
DENIED = (
    r"unauthori[sz]ed|unauthenticated|not authenticated|api key|forbidden|permission|not allowed"
)
MAY_PASS = (
    r"rate limit|too many requests|internal server|time.?out|timed out|something went wrong|"
    r"try again later|temporar|service unavailable|bad gateway"
)
"""What messages of the server say, in lower case; those that say nothing of it are validation."""


@dataclasses.dataclass(frozen=True)
class Account:
    """What the account has, in dollars, and what it spends in an hour, all pods together."""

    balance: float
    spend_per_hour: float


@dataclasses.dataclass(frozen=True)
class Offer:
    """A GPU type in a data centre.

    Attributes:
        gpu: Its name, as `torch.cuda.get_device_name` gives it but for a vendor's suffix.
        region: The data centre; None: wherever there is one, in the Community Cloud.
        memory: Bytes of one GPU.
        price: Dollars per hour of all GPUs of the pod, for sure or as the lowest bid.
        stock: What RunPod says of how many there are.
    """

    gpu: str
    region: str | None
    memory: int
    price: float
    stock: str


@dataclasses.dataclass(frozen=True)
class PodSpec:
    """A pod to create.

    Attributes:
        name: Letters, digits and dashes.
        offer: The GPU and where.
        gpu_count: GPUs of the pod.
        secure: In the Secure Cloud, not the Community Cloud.
        spot: May be reclaimed, for `offer.price` at most.
        image: Of the container.
        command: That the container runs; has no double quotes.
        disk_gb: Of the container.
        volume: ID of a network volume of that data centre, mounted at `mount`; None: none.
        mount: Where it is.
        port: An HTTP port that RunPod's proxy serves.
        environment: Variables, secrets among them.
    """

    name: str
    offer: Offer
    gpu_count: int
    secure: bool
    spot: bool
    image: str
    command: str
    disk_gb: int
    volume: str | None
    mount: str
    port: int
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod of the account.

    Attributes:
        state: RUNNING, EXITED ...; a stopped pod still costs its disk.
        cost_per_hour: Dollars; None where RunPod does not say.
        uptime: Seconds that the container has run, 0 where RunPod does not say.
    """

    id: str
    name: str
    state: str
    cost_per_hour: float | None
    uptime: float
    gpu: str = ""


class RunPod:
    """The calls that are needed, each of which returns checked data or raises a CloudError.

    Args:
        key: The API key.
        redact: Applied to all that the server says.
        given_up: Asked while a reply is awaited; Interrupted is raised once it is True.
        bounded: Runs a call within so many seconds.
    """

    def __init__(
        self,
        key: str,
        redact: Redactor,
        bounded: Callable[[Callable[[], Any], float, Callable[[], bool]], Any],
        given_up: Callable[[], bool] = lambda: False,
        reply_seconds: float = REPLY_SECONDS,
    ):
        self._sdk = _import_sdk()
        self._sdk.api_key = key
        redact.add(key)
        self._redact = redact
        self._bounded = bounded
        self.given_up = given_up
        self._reply_seconds = reply_seconds

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Wait for replies whatever signals come, as while pods are removed."""
        before, self.given_up = self.given_up, lambda: False
        try:
            yield
        finally:
            self.given_up = before

    # What is asked

    def account(self) -> Account:
        """The balance and the spending; Transient where the reply has no numbers."""
        data = self._query("query { myself { clientBalance currentSpendPerHr } }")
        myself = _part(data, "myself", dict)
        return Account(_number(myself, "clientBalance"), _number(myself, "currentSpendPerHr"))

    def offers(self, gpu_count: int, secure: bool, spot: bool) -> list[Offer]:
        """What there is now, in every data centre. What has no price is not there."""
        regions: list[str | None] = [None]
        if secure:
            centres = _part(self._query("query { dataCenters { id } }"), "dataCenters", list)
            ids = (centre.get("id") for centre in centres if isinstance(centre, dict))
            regions = [name for name in ids if _is_word(name)]
        asked = " ".join(
            f"at{index}: lowestPrice(input: {{ gpuCount: {gpu_count}, secureCloud: "
            f"{json.dumps(secure)}"
            + ("" if region is None else f', dataCenterId: "{region}"')
            + " }) { uninterruptablePrice minimumBidPrice stockStatus }"
            for index, region in enumerate(regions)
        )
        data = self._query(f"query {{ gpuTypes {{ id memoryInGb {asked} }} }}")
        field = "minimumBidPrice" if spot else "uninterruptablePrice"
        return [
            Offer(
                kind["id"], region, int(memory * 10**9), gpu_count * _cents(price), _stock(lowest)
            )
            for kind in _part(data, "gpuTypes", list)
            if isinstance(kind, dict) and _is_name(kind.get("id"))
            if (memory := _positive(kind.get("memoryInGb")))
            for index, region in enumerate(regions)
            if isinstance(lowest := kind.get(f"at{index}"), dict)
            and (price := _positive(lowest.get(field)))
        ]

    def pods(self) -> list[Pod]:
        """All pods of the account, whoever made them."""
        found = self._call(self._sdk.get_pods)
        if not isinstance(found, list):
            raise Transient("the list of pods is no list")
        return [_pod(item) for item in found]

    def exists(self, pod_id: str) -> bool:
        """Whether there is a pod, asked by its ID."""
        found = self._call(lambda: self._sdk.get_pod(pod_id))
        return isinstance(found, dict) and bool(found.get("id"))

    # What is done

    def create(self, spec: PodSpec) -> str:
        """Create a pod, and return its ID.

        Raises:
            NoCapacity: There is no such GPU there; no pod was created.
            Transient: A pod may have been created.
            Refused: None was, and none will be.
        """
        reply = self._call(lambda: self._deploy(spec))
        if reply is None:
            raise NoCapacity("the reply was empty")
        if not isinstance(reply, dict) or not _is_word(reply.get("id")):
            raise Transient("the reply to a creation has no pod in it")
        return str(reply["id"])

    def _deploy(self, spec: PodSpec) -> Any:
        """One request. The SDK's `create_pod` sends another before, so that a call that is given up
        could still send the second; and it has no function for spot pods."""
        from runpod.api.mutations.pods import generate_pod_deployment_mutation

        mutation, name = generate_pod_deployment_mutation(**_arguments(spec)), ON_DEMAND
        if spec.spot:
            bid = round(spec.offer.price / spec.gpu_count, 3)
            mutation = mutation.replace(ON_DEMAND, SPOT, 1)
            mutation = mutation.replace("input: {", f"input: {{ bidPerGpu: {bid},", 1)
            name = SPOT
        return self._run(mutation)[name]

    def terminate(self, pod_id: str) -> None:
        """Ask for a pod's removal. A return says nothing: see whether the pod is gone."""
        self._call(lambda: self._sdk.terminate_pod(pod_id))

    # How

    def _query(self, query: str) -> Any:
        return self._call(lambda: self._run(query))

    def _run(self, query: str) -> Any:
        from runpod.api.graphql import run_graphql_query

        return run_graphql_query(query)["data"]

    def _call(self, call: Callable[[], Any]) -> Any:
        """What a call of the SDK returns; a CloudError or Refused for whatever it raises."""
        try:
            return self._bounded(call, self._reply_seconds, self.given_up)
        except (CloudError, Refused):
            raise
        except Exception as error:
            failure = self._failure(error)
        raise failure  # out of the except clause: the error of the SDK holds the query

    def _failure(self, error: Exception) -> CloudError | Refused:
        """What an error of the SDK means. What is no GraphQL error is a reply that makes no sense
        (the SDK looks at no HTTP status but 401), or none."""
        from runpod import error as sdk_errors

        if isinstance(error, sdk_errors.AuthenticationError):
            return Refused("RunPod does not accept the API key; check RUNPOD_API_KEY.")
        if not isinstance(error, sdk_errors.QueryError):
            if isinstance(error, ValueError) and "No GPU found" in str(error):
                return NoCapacity("there is no such GPU type")
            return Transient(f"no sensible reply ({type(error).__name__})")
        message = self._told(error.message)
        said = message.lower()
        if re.search(MAY_PASS, said):
            return Transient(message)
        if re.search(NO_CAPACITY, said):
            return NoCapacity(message)
        if re.search(DENIED, said):
            return Refused(f"RunPod does not allow it: {message}")
        return Refused(f"RunPod refuses what was asked: {message}")

    def _told(self, message: Any) -> str:
        """A message of the server, which may quote the query: redacted, in one short line."""
        text = printable(self._redact(message))
        return text if len(text) <= 200 else f"{text[:200]}..."


def pod_address(pod_id: str, port: int) -> str:
    """The address of a pod's HTTP port, without a slash at the end."""
    address = os.environ.get("RUNPOD_POD_ADDRESS", POD_ADDRESS)
    return address.format(pod=pod_id, port=port).rstrip("/")


def _import_sdk() -> Any:
    try:
        import runpod
    except ImportError as error:
        raise UserError(
            f"the cloud needs RunPod's SDK ({error}); pip install 'runpod>=1.12,<2'"
        ) from None
    version = str(runpod.__version__)
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if not [1, 12] <= numbers < [2]:
        raise UserError(
            f"runpod {version} is installed, whose functions have other names; pip install "
            "'runpod>=1.12,<2'"
        )
    return runpod


def _arguments(spec: PodSpec) -> dict[str, Any]:
    """A spec as the SDK names its parts."""
    return {
        "name": spec.name,
        "image_name": spec.image,
        "gpu_type_id": spec.offer.gpu,
        "cloud_type": "SECURE" if spec.secure else "COMMUNITY",
        "support_public_ip": False,
        "start_ssh": False,
        "data_center_id": spec.offer.region,
        "gpu_count": spec.gpu_count,
        "volume_in_gb": 0,
        "container_disk_in_gb": spec.disk_gb,
        "docker_args": spec.command,
        "ports": f"{spec.port}/http",
        "volume_mount_path": spec.mount,
        "env": {name: _escaped(value) for name, value in spec.environment.items()},
        "network_volume_id": spec.volume,
    }


def _escaped(value: str) -> str:
    """A value as the inside of a GraphQL string, which has the escapes of JSON."""
    return json.dumps(value)[1:-1]


def _part(data: Any, name: str, kind: type) -> Any:
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, kind):
        raise Transient(f"the reply has no {name}")
    return found


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Transient(f"the reply has no number {name}")
    return float(value)


def _positive(value: Any) -> float | None:
    """A finite number above 0, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", value) is not None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_. ()/-]+", value) is not None


def _cents(price: float) -> float:
    """A price rounded up to a tenth of a cent, as bids are."""
    return math.ceil(round(1000 * price, 6)) / 1000


def _stock(lowest: Mapping[str, Any]) -> str:
    return printable(str(lowest.get("stockStatus") or "unknown"))[:20]


def _pod(item: Any) -> Pod:
    if not isinstance(item, dict) or not _is_word(item.get("id")):
        raise Transient("the list of pods has something else in it")
    return Pod(
        id=item["id"],
        name=str(item.get("name") or ""),
        state=printable(str(item.get("desiredStatus") or "unknown"))[:20],
        cost_per_hour=_positive(item.get("costPerHr")),
        uptime=_positive(item.get("uptimeSeconds")) or 0.0,
        gpu=printable(str((item.get("machine") or {}).get("gpuDisplayName") or ""))[:40]
        if isinstance(item.get("machine") or {}, dict)
        else "",
    )
