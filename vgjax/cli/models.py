"""``python -m vgjax diagnose``: any model of JAX."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from vgjax.cli.said import command, say


def add(commands: Any) -> None:
    """Declare it."""
    about = (
        "Say what is wrong with the gradient of a model: where it vanishes, explodes or ends, and why. "
        "Exit status 0 of a healthy model, 1 of a sick one."
    )
    examples = "  vgjax diagnose my_package.models:example --html report.html\n  vgjax diagnose train:example --json"
    p = command(commands, "diagnose", _diagnose, about, examples)
    p.add_argument("function", metavar="package.module:function", help="returns (model, batch) or (model, batch, loss)")
    p.add_argument("--html", metavar="FILE", help="write the report as one page")


def _diagnose(arguments: argparse.Namespace) -> int:
    """0 of a healthy model, 1 of a sick one, 2 of what fails itself, with its own error."""
    import vgjax as vg

    function = _named(arguments.function)
    try:
        given = function()
        if type(given) is not tuple or len(given) not in (2, 3):
            raise ValueError(f"{arguments.function} must return (model, batch) or (model, batch, loss)")
        found = vg.diagnose(*given)
    except Exception:
        traceback.print_exc()
        return 2
    if arguments.html:
        found.to_html(arguments.html)
    say(arguments, found, found.to_json())
    return 0 if found.is_healthy else 1


def _named(spec: str) -> Callable[[], Any]:
    """The function that ``package.module:function`` names, also of the folder that one stands in."""
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ValueError(f"function must be given as package.module:function, got {spec!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(name), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        raise ValueError(f"function must be in a module that can be imported, got {spec!r} ({error})") from None
    if not callable(function):
        raise ValueError(f"function must be one of module {name}, got {attribute!r}")
    return function
