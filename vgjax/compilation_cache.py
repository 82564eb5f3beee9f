"""Compiled programs kept from one process to the next: of the command line and of scripts, never of the library."""

import os
import platform
import sys
from pathlib import Path

import jax

from vgjax.files import writable_folder

SWITCH = "VGJAX_CACHE"
"""The environment variable that names another folder; ``off`` keeps nothing."""


def folder() -> Path:
    """Where programs are kept: what `SWITCH` names, else ``vgjax`` in the user's cache folder; for every machine a
    folder of its own, since programs are compiled for one processor and JAX's keys do not say for which."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(SWITCH) or Path(caches) / "vgjax") / (platform.node() or "here")


def keep_programs() -> None:
    """Let JAX find every program that an earlier process has compiled, so that the second command starts at once.

    This is JAX's own persistent cache; its keys hold the program, the versions of JAX and XLA, the device and all
    switches, so that what another version has left is never used. A folder that the user has given to JAX already
    (``JAX_COMPILATION_CACHE_DIR``) stays. One that cannot be written to costs one line on standard error.
    """
    if os.environ.get(SWITCH) == "off" or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        path = writable_folder(folder())
    except (ValueError, OSError, RuntimeError) as error:  # also without a home
        print(f"vgjax: compiled programs are not kept: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a hundred small programs are seconds too
