"""An interrupt of the command line: one sentence and exit status 130, from the library's first import on.

Imported before everything else, so it imports nothing heavy. It is no KeyboardInterrupt: one that is raised while JAX's
extension modules are loaded, or in a call back from its compiler into Python, meets C++ that does not expect it and
ends in a segmentation fault, at once or in the destructors that run when Python ends. So the process leaves as it is,
without unwinding, without waiting for a thread, without destructors. What it wrote is whole (`vgjax.files`).

Only the process of the command line is handled so. In any other an interrupt stays a KeyboardInterrupt.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

before_leaving: list[Callable[[], None]] = []
"""What is done first: files add the removal of temporaries."""


def leave(*_: Any) -> None:
    """End the process."""
    for do in before_leaving:
        do()
    line = "vgjax: stopped; nothing was written\n"
    # Not by sys.stderr, which the interrupted code may be writing to; there a progress bar has its line to itself.
    os.write(2, ("\n" * os.isatty(2) + line).encode())
    os._exit(130)


def ignore() -> None:
    """From here on the command line writes, which takes no time worth interrupting, and is done."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_command_line() -> bool:
    """Whether this process is ``vgjax ...`` or ``python -m vgjax ...`` (whose name is not yet that of a file)."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":
        return sys.orig_argv[: 1 - len(sys.argv) or None][-1].removeprefix("-m") == "vgjax"
    return os.path.splitext(os.path.basename(name))[0] == "vgjax"


# Where interrupts are ignored (nohup), they stay so.
if _is_command_line() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
