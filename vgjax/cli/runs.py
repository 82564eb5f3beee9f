"""``python -m vgjax status`` and ``collect``: runs in folders."""

import argparse
import sys
from typing import Any

from vgjax.cli.said import command, say
from vgjax.ensembles.folder import MissingPieces


def add(commands: Any) -> None:
    """Declare both."""
    about = "Say how far the run in a folder of vgjax.sweep is; exit status 0 if every piece is done, else 1."
    examples = "  vgjax status runs/edge\n  vgjax status runs/edge --json | jq .remaining"
    p = command(commands, "status", _status, about, examples)
    p.add_argument("folder")
    about = "Write the result of the run in a folder; exit status 1 if pieces are missing, which are named."
    p = command(commands, "collect", _collect, about, "  vgjax collect runs/edge edge.npz")
    p.add_argument("folder")
    p.add_argument("out", metavar="RESULT", help="a result: .npz, or .nc (netCDF)")


def _status(arguments: argparse.Namespace) -> int:
    """0 of a run whose pieces are all done, else 1."""
    import vgjax as vg

    found = vg.status(arguments.folder)
    say(arguments, found, {**found._asdict(), "remaining": found.remaining, "seconds_left": found.seconds_left})
    return 0 if found.is_complete else 1


def _collect(arguments: argparse.Namespace) -> int:
    """0 if the result is written, 1 if pieces of it are missing."""
    import vgjax as vg

    try:
        result = vg.collect(arguments.folder)
    except MissingPieces as error:
        print(f"vgjax: {error}", file=sys.stderr)
        return 1
    written = str(result.save(arguments.out))
    say(arguments, f"{result}\n{written}", {"result": str(result), "written": written})
    return 0
