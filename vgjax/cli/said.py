"""What every command shares: how it is declared, and how its answer is said, in words or as JSON."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vgjax.files import whole_file

STANDARD_OUTPUT = "-"


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], about: str, examples: str
) -> argparse.ArgumentParser:
    """A command's own parser, with its examples below its options and ``--json``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=f"examples:\n{examples}", formatter_class=_Help
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--json",
        nargs="?",
        const=STANDARD_OUTPUT,
        metavar="FILE",
        help="the answer as JSON, on standard output in place of words, or into a file",
    )
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, ())
        return super()._get_help_string(action) if has_default else action.help


def say(arguments: argparse.Namespace, words: Any, answer: dict[str, Any]) -> None:
    """The answer in words; as JSON in their place with ``--json``, beside them with ``--json FILE``."""
    if arguments.json == STANDARD_OUTPUT:
        print(json.dumps(plain(answer), allow_nan=False))
        return
    if arguments.json:
        with whole_file(Path(arguments.json)) as temporary:
            temporary.write_text(json.dumps(plain(answer), indent=1, allow_nan=False) + "\n")
    print(words)


def plain(value: Any) -> Any:
    """As JSON has it, which knows no infinity and no NaN: null (a status beside it says which)."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
