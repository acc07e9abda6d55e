"""The command `nanoarch`: one name for the scripts of the project.

nanoarch train config/arch_llama.py --max_iters=100
nanoarch compare out
nanoarch train --help
"""

from __future__ import annotations

import sys

from cli import run_cli
from errors import UserError, nearest
from nanoarch import own_module
from nanoarch.commands import COMMANDS


def usage() -> str:
    rows = [f"  {name:<11} {does}" for name, (_, does) in COMMANDS.items()]
    hint = "nanoarch COMMAND --help lists its options."
    return "\n".join(["usage: nanoarch COMMAND [arguments]", "", hint, "", *rows])


def main(argv: list[str]) -> int | None:
    """Run a command with the arguments after its name."""
    if not argv or argv[0] in ("--help", "-h"):
        print(usage())
        return None
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}\n{usage()}")
    sys.argv = [f"nanoarch {name}", *rest]  # which argparse names
    if name == "export":
        rest = ["export", *rest]
    return own_module(COMMANDS[name][0]).main(rest)


def run() -> None:
    """The entry point of the installed command."""
    run_cli(main)


if __name__ == "__main__":
    run()
