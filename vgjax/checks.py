"""Input checks at the edge: one sentence with name, rule and value, before any work is done."""

import difflib
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import jax
import jax.typing
import numpy as np

ArrayLike: TypeAlias = jax.typing.ArrayLike | Sequence[Any]
"""What numpy makes an array of: JAX's own type leaves out lists of numbers."""

P = ParamSpec("P")
R = TypeVar("R")


def known(kind: str, name: Any, names: Iterable[str], also: str = "") -> str:
    """The name, if it is one of the names; else one sentence that lists them and says which is nearest."""
    names = list(names)
    if name in names:
        return str(name)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{kind} must be one of {', '.join(names)}{also}, got {name!r}{hint}")


def positive_integer(name: str, value: Any) -> int:
    """The value as an int, if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def whole_numbers(name: str, values: Iterable[Any], least: int, most: int) -> list[int]:
    """The values as ints, if all are whole numbers within bounds."""
    values = list(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
            raise ValueError(f"{name} must be whole numbers from {least} to {most}, got {value!r}")
    return [int(value) for value in values]


def not_negative(name: str, value: Any) -> None:
    """Pass numbers that are finite and not negative."""
    finite(name, value, "not negative", lambda v: v >= 0)


def finite(
    name: str, value: Any, rule: str | None = None, holds: Callable[[np.ndarray], np.ndarray] | None = None
) -> None:
    """Pass finite numbers for which a rule holds; traced ones cannot be looked at and pass too."""
    if is_traced(value):
        return
    numbers = np.asarray(value, dtype=float)
    bad = numbers[~(np.isfinite(numbers) & (holds(numbers) if holds else True))]
    if bad.size:
        raise ValueError(f"{name} must be finite{f' and {rule}' if rule else ''}, got {bad.flat[0]:g}")


def finite_in(name: str, value: Any, dtype: Any) -> None:
    """Pass arrays of finite numbers that stay finite in the dtype they are computed in, and do not all become 0."""
    if is_traced(value):
        return
    numbers = np.asarray(value)
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"{name} must be finite, got a NaN or an infinity")
    with np.errstate(over="ignore", under="ignore"):
        there = numbers.astype(dtype)
    lost = there[np.isinf(there)].size or (np.any(numbers) and not np.any(np.abs(there) >= np.finfo(dtype).tiny))
    if lost:
        largest = np.max(np.abs(numbers))
        raise ValueError(f"{name} must lie within the range of {np.dtype(dtype).name}, got {largest:g}")


def is_traced(value: Any) -> bool:
    """Whether a value is being traced, so that its numbers cannot be checked."""
    return isinstance(value, jax.core.Tracer)


def nan_is_data(f: Callable[P, R]) -> Callable[P, R]:
    """Run f whatever `jax_debug_nans` says: a NaN in its result is a value (not reported, or marked), not a slip.

    JAX looks for NaNs in what every compiled program returns, and cannot be told of those that are meant.
    """

    @functools.wraps(f)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.debug_nans(False):
            return f(*args, **kwargs)

    return wrapper


def untraced(f: Callable[P, R]) -> Callable[P, R]:
    """Run f on concrete numbers, whatever is being traced around it.

    Facts about an activation or a block are needed as Python numbers while a network is being traced. JAX's tracing
    state belongs to a thread, so a thread of its own sees none (`jax.ensure_compile_time_eval` does not hold for
    `custom_jvp` under `vmap`).
    """

    @functools.wraps(f)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        outcome: list[R] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(f(*args, **kwargs))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return outcome[0]

    return wrapper
