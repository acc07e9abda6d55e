"""The command that a pod's container starts: the dead-man switch, then the server."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

AGENT = Path(__file__).with_name("pod_agent.py")

END = "end_of_pod_agent"

SCRIPT = f"""\
{{ sleep "$NANOARCH_BASH_SECONDS"
  while :; do runpodctl remove pod "$RUNPOD_POD_ID"; sleep 30; done
}} >/dev/null 2>&1 &
mkdir -p "$NANOARCH_CODE" "$NANOARCH_HOME"
cd "$NANOARCH_CODE"
cat >pod_agent.py <<'{END}'
AGENT
{END}
while :; do python3 pod_agent.py dead_man; sleep 1; done &
while :; do python3 pod_agent.py serve; sleep 1; done
"""
"""The first dead-man switch is of bash alone, for an image whose Python does not start, and comes
half a minute after the other. The script does not end, since RunPod would start it again, and a
switch that waits anew each time would never fire."""


def start_script() -> str:
    """The script, which holds no secret and nothing of the deployment: that is in the pod's
    environment."""
    agent = AGENT.read_text(encoding="utf-8")
    assert END not in agent
    return SCRIPT.replace("AGENT", agent, 1)


def start_command() -> str:
    """The script as a command that needs no quoting, since RunPod's SDK does none."""
    packed = base64.b64encode(gzip.compress(start_script().encode(), mtime=0)).decode()
    return f"bash -c 'echo {packed} | base64 -d | gunzip | bash'"
