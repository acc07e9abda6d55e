"""The command that a pod's container runs: the dead-man switches, then the server.

It unpacks a shell script that contains the files of `cloud/pod/`. The script holds no secret and
nothing that differs between deployments; those values are in the pod's environment.
"""

from __future__ import annotations

import ast
import base64
import functools
import gzip
from pathlib import Path

POD_FILES = Path(__file__).with_name("pod")

END = "end_of_file"

SCRIPT = """\
remove_pod() {
  timeout 60 runpodctl remove pod "$RUNPOD_POD_ID"
  timeout 60 runpodctl pod delete "$RUNPOD_POD_ID"
  query='{"query": "mutation { podTerminate(input: { podId: \\"'"$RUNPOD_POD_ID"'\\" }) }"}'
  printf 'header = "Authorization: Bearer %s"\\n' "$RUNPOD_API_KEY" | curl --silent --max-time 60 \\
    --config - --header 'Content-Type: application/json' --user-agent nanoarch --data "$query" \\
    "${RUNPOD_API_BASE_URL:-https://api.runpod.io}/graphql"
}
{ until [ "$SECONDS" -ge "$NANOARCH_SHELL_SECONDS" ] ||
    [ "$(date +%s)" -ge "$NANOARCH_SHELL_DEADLINE" ]; do sleep 1; done
  while :; do remove_pod; sleep 30; done
} >/dev/null 2>&1 &
mkdir -p "$NANOARCH_CODE/cloud/pod" "$NANOARCH_HOME"
cd "$NANOARCH_CODE"
: >cloud/__init__.py
FILES
while :; do python3 -m cloud.pod dead_man; sleep 1; done &
while :; do python3 -m cloud.pod serve; sleep 1; done
"""
"""The first dead-man switch needs only the shell, for an image whose Python does not start, and
acts half a minute after the other. The script never ends: RunPod would restart the container, and
a switch that starts over each time would never act."""


@functools.cache
def start_script() -> str:
    """The script, with the files of `cloud/pod/` in it."""
    return SCRIPT.replace("FILES\n", "".join(_as_here_documents()), 1)


def _as_here_documents() -> list[str]:
    documents = []
    for path in sorted(POD_FILES.glob("*.py")):
        text = code_alone(path.read_text(encoding="utf-8"))
        assert END not in text
        documents.append(f"cat >cloud/pod/{path.name} <<'{END}'\n{text}\n{END}\n")
    return documents


def code_alone(source: str) -> str:
    """Python source without comments and docstrings, to keep the command short."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            body = [statement for statement in node.body if not _is_text(statement)]
            node.body = body or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def start_command() -> str:
    """The script as a command without characters that need quoting: RunPod's SDK escapes none."""
    packed = base64.b64encode(gzip.compress(start_script().encode(), mtime=0)).decode()
    return f"bash -c 'echo {packed} | base64 -d | gunzip | bash'"
