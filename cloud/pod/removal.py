"""How a pod removes itself, with the API key that RunPod gives each pod."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
import urllib.request
from typing import Any

from cloud.pod.place import Background, Place

ASK_SECONDS = 30.0
"""How long to wait for a reply of RunPod's API."""

REMOVE = 'mutation {{ podTerminate(input: {{ podId: "{pod}" }}) }}'
STOP = 'mutation {{ podStop(input: {{ podId: "{pod}" }}) {{ id }} }}'
PRICE = 'query {{ pod(input: {{ podId: "{pod}" }}) {{ costPerHr }} }}'

REMOVE_COMMANDS = (("remove", "pod"), ("pod", "delete"))
"""Of RunPod's tool `runpodctl`: the older and the newer spelling."""

TRIES_BEFORE_STOPPING = 3
"""Failed removals after which the pod is also stopped; a stopped pod costs only its disk."""


def remove_pod(place: Place) -> None:
    """Remove this pod. Tries again until the removal ends this process."""
    tries = 0
    while True:
        ask(place, REMOVE)
        for command in REMOVE_COMMANDS:
            _runpodctl(*command, place.pod)
        if tries >= TRIES_BEFORE_STOPPING:
            ask(place, STOP)
            _runpodctl("stop", "pod", place.pod)
        tries += 1
        time.sleep(min(60, 2**tries))


def price_of_pod(place: Place) -> float | None:
    """Dollars per hour of this pod; None if the API does not answer."""
    try:
        return float(ask(place, PRICE)["data"]["pod"]["costPerHr"])
    except (KeyError, TypeError, ValueError):
        return None


def ask(place: Place, query: str) -> Any:
    """The API's reply to a query about this pod; None on an error or after ASK_SECONDS.

    The limit covers a reply that arrives byte by byte, which no socket timeout ends.
    """
    asked = Background(lambda: _ask(place, query.format(pod=place.pod)))
    asked.thread.join(ASK_SECONDS)
    return asked.result


def _ask(place: Place, query: str) -> Any:
    request = urllib.request.Request(
        place.api + "/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Bearer " + place.key,
            "User-Agent": "nanoarch",  # RunPod rejects urllib's own
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return answer if isinstance(answer, dict) and "errors" not in answer else None


def _runpodctl(*arguments: str) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            ["runpodctl", *arguments],
            timeout=60,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
