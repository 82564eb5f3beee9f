"""What every test shares."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Workers, processes that tests start, and the next run share what is compiled, which is most of the time. JAX reads
# these when it is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Where XLA still has its older code generator for CPUs, that compiles in half the time, and in a fifth less again if no
# program is split for several threads: there is a process for every core. Slow tests take the usual one.
if "OPTIMIZED" not in os.environ and version("jaxlib") < "0.11":
    faster = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {faster}"

# isort: split
import jax
import jaxtyping
import psutil
import pytest
import scipy.linalg  # noqa: F401 - so that its BLAS is loaded before it is limited
from threadpoolctl import threadpool_limits

MOST_MEMORY = 1.2 * 2**30
"""Bytes from which on a worker forgets its programs between two tests: a single test may add as much as 0.8 GB."""

# Most of the time goes into tracing and compiling, a tenth of that into these two.
gc.set_threshold(200_000, 20, 100)
jax.config.update("jax_traceback_filtering", "off")


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """There is a process for every core: several threads for a small matrix only wait for each other."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """What counts is how long programs compile, for they run for milliseconds; but for modules that say they compute,
    or test the last digits of float32, and where all is to be as users have it (`make smoke`, `make test-slow`)."""
    quick = not hasattr(request.module, "COMPUTES") and "OPTIMIZED" not in os.environ
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_module() -> Iterator[None]:
    """Every compiled program holds memory maps, of which a process may have 65,530: past them XLA aborts. And what a
    module replaced while it was traced, or had compiled otherwise, is nothing for the next."""
    yield
    forget_programs()


@pytest.fixture(autouse=True)
def programs_fit_into_memory() -> Iterator[None]:
    """And those of one module may be so many that a worker would grow to 4 GB."""
    yield
    if psutil.Process().memory_info().rss > MOST_MEMORY:
        forget_programs()


def forget_programs() -> None:
    """Drop what is traced and compiled; what comes again is read from the folder that keeps it."""
    from vgjax.ensembles import job  # not before pytest has put its hook for annotations in front of imports

    job._program.cache_clear()
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # what is free goes back to the system
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """The whole test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def kinds_unchecked() -> Iterator[None]:
    """Calls without the check of annotations: what a user's wrong kind meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """A float32 that silently becomes a float64, or an int32 a float32, is a mistake."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the pieces that are made."""
    from vgjax.ensembles.job import Job  # see above

    made: list[int] = []
    piece = Job.piece

    def counted(self: Any, drawn: Any, seed: int, *rest: Any) -> Any:
        made.append(seed)
        return piece(self, drawn, seed, *rest)

    monkeypatch.setattr(Job, "piece", counted)
    return made
