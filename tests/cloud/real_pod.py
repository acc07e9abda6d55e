"""A pod whose start command really runs, as processes of this machine.

What a container would have is put in the place of it: its folders are in the test's, RunPod's tool
`runpodctl` is a script that asks the fake's API, and killing the container kills its processes.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from tests.cloud.fake_runpod import Rented, World

RUNPODCTL = """#!/bin/sh
exec {python} - "$@" <<'END'
import json, os, sys, urllib.request
query = 'mutation {{ podTerminate(input: {{ podId: "%s" }}) }}' % sys.argv[-1]
urllib.request.urlopen(urllib.request.Request(
    os.environ["RUNPOD_API_BASE_URL"] + "/graphql", json.dumps({{"query": query}}).encode(),
    {{"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"]}}))
END
"""


class RealPod:
    """The inside of a pod that runs for real."""

    def __init__(self, world: World, pod: Rented):
        self.pod = pod
        place = world.folder / "pods" / pod.id
        mount = world.folder / "volumes" / pod.volume if pod.volume else place / "workspace"
        tools = place / "bin"
        for folder in (mount, tools):
            folder.mkdir(parents=True, exist_ok=True)
        tool = tools / "runpodctl"
        tool.write_text(RUNPODCTL.format(python=sys.executable))
        tool.chmod(0o755)
        self.port = _free_port()
        env = {
            name: value.replace("/workspace", str(mount)).replace("/root", str(place / "root"))
            for name, value in pod.env.items()
        }
        env["NANOARCH_PORT"] = str(self.port)
        env["RUNPOD_API_BASE_URL"] = world.address
        env["PATH"] = os.pathsep.join(
            (str(tools), str(Path(sys.executable).parent), os.environ["PATH"])
        )
        env |= {"HOME": str(place), "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
        self.output = (place / "output").open("wb")
        command = pod.command.removeprefix("bash -c '").removesuffix("'")
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            env=env,
            cwd=place,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        """As a container ends: all of its processes at once, known by their environment."""
        for process in processes_of(self.pod.id):
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()
        self.output.close()

    def request(
        self, method: str, address: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {"Authorization": headers.get("Authorization", "")}
            connection.request(method, address, body, given)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException):
            return 502, b"Bad gateway"
        finally:
            connection.close()


def processes_of(pod_id: str) -> list[psutil.Process]:
    """The processes of a pod that runs for real."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUNPOD_POD_ID") == pod_id and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
