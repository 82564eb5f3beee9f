"""The library's jobs from the command line: ``python -m vgjax COMMAND``.

A command is a module with ``add(commands)``, which declares it with the function that runs it.
"""

import argparse
import sys
from collections.abc import Sequence

from vgjax.cli import exploring, maps, models, points, runs, treatments
from vgjax.compilation_cache import SWITCH, keep_programs

COMPILED = ("map", "remedies", "diagnose", "explore")
"""The commands that compile programs, and so can keep them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it worked, 1 of a model whose gradient is sick and of a run that is not done, 2 with one
    sentence on standard error if the input was bad or nothing could be written. An interrupt ends the process
    (`vgjax.interrupts`)."""
    arguments = _parser().parse_args(argv)
    if not getattr(arguments, "no_cache", True):
        keep_programs()
    try:
        return arguments.run(arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"vgjax: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vgjax",
        description="Maps where gradients vanish or explode in deep networks.",
        epilog="Exit status: 0 done (or healthy, or complete); 1 no (a sick model, a run with pieces missing); "
        "2 bad input, with one sentence on standard error. `vgjax COMMAND --help` has examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (maps, points, treatments, models, exploring, runs):
        module.add(commands)
    about = "compile everything anew, instead of keeping it in the user's cache folder for the next command"
    for name in COMPILED:
        commands.choices[name].add_argument("--no-cache", action="store_true", help=f"{about} (as {SWITCH}=off does)")
    return parser
