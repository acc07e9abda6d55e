"""RunPod's objects: accounts, offers, volumes and pods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Account:
    """The account's balance in dollars, and its spending in dollars per hour over all pods."""

    balance: float
    spend_per_hour: float


@dataclasses.dataclass(frozen=True)
class Offer:
    """A GPU type in a data center.

    Attributes:
        gpu: Name, as `torch.cuda.get_device_name` gives it, except for a vendor's suffix.
        region: Data center; None in the Community Cloud, where RunPod chooses the place.
        memory: Bytes of one GPU.
        price: Dollars per hour of all GPUs of the pod: on demand, or the lowest spot bid.
        stock: Availability according to RunPod: High, Medium, Low.
    """

    gpu: str
    region: str | None
    memory: int
    price: float
    stock: str

    @property
    def where(self) -> str:
        """The GPU and its location as text."""
        return f"{self.gpu} in {self.region or 'the Community Cloud'}"


@dataclasses.dataclass(frozen=True)
class NetworkVolume:
    """A network volume of the account and its data center."""

    id: str
    region: str


@dataclasses.dataclass(frozen=True)
class PodSpec:
    """A pod to create.

    Attributes:
        name: Letters, digits and dashes.
        offer: GPU and place.
        gpu_count: GPUs of the pod.
        secure: Whether in the Secure Cloud; else in the Community Cloud.
        spot: Whether RunPod may reclaim it; `offer.price` is the bid.
        image: Container image.
        cuda: CUDA versions that the machine's driver may support; empty: any.
        command: What the container runs; has no double quotes.
        disk_gb: Size of the container disk.
        volume: ID of a network volume of that data center, mounted at `mount`; None: none.
        mount: Where the volume is mounted.
        port: HTTP port that RunPod's proxy exposes.
        environment: Environment variables, secrets among them.
    """

    name: str
    offer: Offer
    gpu_count: int
    secure: bool
    spot: bool
    image: str
    cuda: tuple[str, ...]
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
        state: RUNNING, EXITED, ...; a stopped pod still costs its disk.
        cost_per_hour: Dollars; None if RunPod does not say.
        uptime: Seconds that the container has run; 0 if RunPod does not say.
        gpu: Display name of the GPU; may be empty.
    """

    id: str
    name: str
    state: str
    cost_per_hour: float | None
    uptime: float
    gpu: str = ""
