"""RunPod's API, through its SDK. No other module knows the SDK.

The SDK is imported when the first `RunPod` is created, since the import takes a second. It puts
its arguments into GraphQL queries without escaping them, and its `QueryError` carries the query,
secrets included. So no error of the SDK leaves this module: it raises those of `failures`, with
the server's message redacted and shortened.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from cloud import runpod_messages, runpod_replies
from cloud.failures import CloudError, KeyRefused, NoCapacity, NoSuchPod, Refused, Transient
from cloud.redaction import Redactor
from cloud.runpod_types import Account, NetworkVolume, Offer, Pod, PodSpec
from cloud.timekeeping import Bounded
from errors import UserError, printable

REPLY_SECONDS = 45.0
"""How long a call may take; the SDK itself waits 30 s for each part of a reply."""

POD_ADDRESS = "https://{pod}-{port}.proxy.runpod.net"
"""Address of a pod's HTTP port; the environment variable RUNPOD_POD_ADDRESS overrides it."""

ON_DEMAND, SPOT = "podFindAndDeployOnDemand", "podRentInterruptable"
"""The mutations that create a pod."""

ACCOUNT = "query { myself { clientBalance currentSpendPerHr } }"
REGIONS = "query { dataCenters { id } }"


class RunPod:
    """The calls that a deployment needs. Each returns checked data or raises a CloudError or
    Refused.

    Args:
        key: The API key.
        redact: Applied to every message of the server.
        bounded: Runs a call within a time limit.
        given_up: Polled while waiting for a reply; Interrupted is raised once it returns True.
        reply_seconds: The time limit.
    """

    def __init__(
        self,
        key: str,
        redact: Redactor,
        bounded: Bounded,
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

    # Questions

    def account(self) -> Account:
        """Balance and spending of the account."""
        return runpod_replies.account(self._query(ACCOUNT))

    def regions(self) -> list[str]:
        """The IDs of RunPod's data centers."""
        return runpod_replies.regions(self._query(REGIONS))

    def volumes(self) -> list[NetworkVolume]:
        """The network volumes of the account."""
        return runpod_replies.volumes(self._call(self._sdk.get_user))

    def offers(self, gpu_count: int, secure: bool, spot: bool) -> list[Offer]:
        """GPU types with their prices now, for each data center of the Secure Cloud or for the
        Community Cloud as a whole."""
        places: list[str | None] = [*self.regions()] if secure else [None]
        prices = " ".join(
            f"at{index}: {_lowest_price(gpu_count, secure, place)}"
            for index, place in enumerate(places)
        )
        data = self._query(f"query {{ gpuTypes {{ id memoryInGb {prices} }} }}")
        price_field = "minimumBidPrice" if spot else "uninterruptablePrice"
        return runpod_replies.offers(data, places, price_field, gpu_count)

    def pods(self) -> list[Pod]:
        """All pods of the account."""
        return runpod_replies.pods(self._call(self._sdk.get_pods))

    def exists(self, pod_id: str) -> bool:
        """Whether RunPod finds a pod by its ID."""
        try:
            found = self._call(lambda: self._sdk.get_pod(pod_id), NoSuchPod)
            return runpod_replies.is_pod(found)
        except NoSuchPod:
            return False

    # Orders

    def create(self, spec: PodSpec) -> str:
        """Create a pod and return its ID.

        Raises:
            NoCapacity: There is no such GPU there; no pod was created.
            Transient: A pod may have been created.
            Unclear: The request was rejected, but a pod may have been created.
            Refused: The request was rejected; no pod was created.
        """
        return runpod_replies.created(self._call(lambda: self._deploy(spec), NoCapacity))

    def _deploy(self, spec: PodSpec) -> Any:
        """One request. The SDK's `create_pod` makes two, and the second could be sent after the
        call was given up during the first. The SDK has no function for spot pods."""
        from runpod.api.mutations.pods import generate_pod_deployment_mutation

        mutation, name = generate_pod_deployment_mutation(**_arguments(spec)), ON_DEMAND
        if spec.spot:
            bid = round(spec.offer.price / spec.gpu_count, 3)
            mutation = mutation.replace(ON_DEMAND, SPOT, 1)
            mutation = mutation.replace("input: {", f"input: {{ bidPerGpu: {bid},", 1)
            name = SPOT
        return self._run(mutation)[name]

    def terminate(self, pod_id: str) -> None:
        """Ask for a pod's removal. That this returns does not show that the pod is gone.

        Raises:
            NoSuchPod: RunPod has no such pod.
        """
        self._call(lambda: self._sdk.terminate_pod(pod_id), NoSuchPod)

    # Calls

    def _query(self, query: str) -> Any:
        return self._call(lambda: self._run(query))

    def _run(self, query: str) -> Any:
        from runpod.api.graphql import run_graphql_query

        return run_graphql_query(query)["data"]

    def _call(self, call: Callable[[], Any], expected: type[CloudError] = Transient) -> Any:
        """The result of a call of the SDK; a CloudError or Refused for any exception.

        Args:
            call: The call.
            expected: The CloudError that it may raise besides Transient. Another one, guessed from
                words such as "not available", is Transient.
        """
        try:
            return self._bounded(call, self._reply_seconds, self.given_up)
        except (CloudError, Refused):
            raise
        except Exception as error:
            failure = self._failure(error)
        if not isinstance(failure, expected | Refused):
            failure = Transient(str(failure))
        raise failure  # outside the except clause, since the SDK's error holds the query

    def _failure(self, error: Exception) -> CloudError | Refused:
        """The failure that an exception of the SDK stands for. The SDK checks no HTTP status but
        401, so a 429 or 500 shows itself as a reply that cannot be parsed."""
        from runpod import error as sdk_errors

        if isinstance(error, sdk_errors.AuthenticationError):
            return KeyRefused("RunPod does not accept the API key; check RUNPOD_API_KEY.")
        if isinstance(error, sdk_errors.QueryError):
            return runpod_messages.failure(self._one_line(error.message))
        if isinstance(error, ValueError) and "No GPU found" in str(error):
            return NoCapacity("there is no such GPU type")
        return Transient(f"no usable reply ({type(error).__name__})")

    def _one_line(self, message: Any) -> str:
        """A message of the server, which may quote the query: redacted and shortened."""
        text = printable(self._redact(message))
        return text if len(text) <= 200 else f"{text[:200]}..."


def pod_address(pod_id: str, port: int) -> str:
    """Base URL of a pod's HTTP port, without a trailing slash."""
    address = os.environ.get("RUNPOD_POD_ADDRESS", POD_ADDRESS)
    return address.format(pod=pod_id, port=port).rstrip("/")


def _import_sdk() -> Any:
    try:
        import runpod
    except ImportError as error:
        raise UserError(
            f"RunPod's SDK is not installed ({error}); pip install 'runpod>=1.12,<2'"
        ) from None
    except Exception as error:  # it reads ~/.runpod/config.toml, which may be damaged
        raise UserError(
            f"RunPod's SDK cannot be imported ({type(error).__name__}); check "
            "~/.runpod/config.toml."
        ) from None
    version = str(runpod.__version__)
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if not [1, 12] <= numbers < [2]:
        raise UserError(
            f"runpod {version} is installed, and its API differs; pip install 'runpod>=1.12,<2'"
        )
    return runpod


def _lowest_price(gpu_count: int, secure: bool, place: str | None) -> str:
    asked = f"gpuCount: {gpu_count}, secureCloud: {json.dumps(secure)}"
    if place is not None:
        asked += f', dataCenterId: "{place}"'
    return (
        f"lowestPrice(input: {{ {asked} }}) {{ uninterruptablePrice minimumBidPrice stockStatus }}"
    )


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
        "allowed_cuda_versions": list(spec.cuda) or None,
    }


def _escaped(value: str) -> str:
    """A value as the inside of a GraphQL string, which has the escapes of JSON."""
    return json.dumps(value)[1:-1]
