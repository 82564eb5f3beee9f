"""Prints the signatures of all public functions, as they stand in `docs/design.md`: ``python docs/signatures.py``."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import vgjax as vg

DESIGN = Path(__file__).parent / "design.md"
REGION = re.compile(r"<!-- signatures -->\n.*?<!-- /signatures -->", re.S)


def short(default: Any) -> str:
    """A default as it reads in a table."""
    return "..." if callable(default) or len(repr(default)) > 24 else repr(default)


def parameters(function: Any) -> str:
    """Names with defaults, in order, as a call would be written."""
    parts, keyword_only = [], False
    for p in inspect.signature(function).parameters.values():
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts += [] if any(part.startswith("*") for part in parts) else ["*"]
        parts.append(star + p.name + ("" if p.default is p.empty else f"={short(p.default)}"))
    return ", ".join(parts)


def table() -> str:
    """One row a function of `vgjax`, in the order of its table of contents."""
    functions = [(name, getattr(vg, name)) for name in vg.__all__ if inspect.isfunction(getattr(vg, name))]
    rows = [f"| `{name}` | `({parameters(function)})` |" for name, function in functions]
    return "\n".join(["<!-- signatures -->", "| function | parameters |", "|---|---|", *rows, "<!-- /signatures -->"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DESIGN.write_text(REGION.sub(lambda _: table(), DESIGN.read_text()))
    print(table())
