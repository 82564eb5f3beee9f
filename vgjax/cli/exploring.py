"""``python -m vgjax explore``: the theory as one page to play with."""

import argparse
import os
import sys
import webbrowser
from typing import Any

from vgjax import plots
from vgjax.cli.said import command, say


def add(commands: Any) -> None:
    """Declare it."""
    about = "Write the explorer, one page that shows the theory of every scale, depth and width, and open it."
    examples = "  vgjax explore\n  vgjax explore --activation tanh --activation relu --out lecture.html --no-open"
    p = command(commands, "explore", _explore, about, examples)
    p.add_argument("--activation", action="append", help="may be given several times; left out, nine common ones")
    p.add_argument("--out", default="results/explorer.html", metavar="PAGE", help="where the page is written")
    p.add_argument("--no-open", action="store_true", help="write it and open no browser")


def _explore(arguments: argparse.Namespace) -> int:
    """The path; a browser only where there is a screen."""
    names = arguments.activation or list(plots.EXPLORED)
    path = plots.explorer(arguments.out, names)
    say(arguments, path, {"path": str(path), "bytes": path.stat().st_size, "activations": names})
    screen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and not arguments.no_open:
        webbrowser.open(path.resolve().as_uri())
    return 0
