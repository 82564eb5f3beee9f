"""Objects as values: equal by content, read in one line, pickled with the functions they hold."""

import dataclasses
import pickle
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

Kind = TypeVar("Kind", bound=type)


def on_device(value: Any) -> jax.Array:
    """`jax.numpy.asarray` of numbers, which compiles a program for every shape where they are not yet on a device."""
    if isinstance(value, (list, tuple)):
        return jax.numpy.asarray(value)  # tracers may be among them
    return value if isinstance(value, jax.Array) else jax.device_put(value)


def by_content(kind: Kind) -> Kind:
    """Make a class that carries arrays compare and read as a value.

    Two of it are equal if all that they carry is, shapes, dtypes and NaN included; where Python's own comparison stops
    at the first array. Its repr says arrays by dtype and shape. It cannot be hashed.
    """
    kind.__eq__ = _equal  # type: ignore[assignment]
    kind.__ne__ = _unequal  # type: ignore[assignment]  # a tuple has one of its own
    kind.__hash__ = None  # type: ignore[assignment]
    code = getattr(kind.__repr__, "__code__", None)
    if code is None or code.co_filename != sys.modules[kind.__module__].__file__:  # none that was written for it
        kind.__repr__ = in_one_line  # type: ignore[assignment]
    return kind


def _equal(self: Any, other: Any) -> Any:
    if isinstance(self, tuple) and type(other) is tuple:
        return equal(tuple(self), other)
    # What is of another kind may know better how to compare (pytest.approx).
    return equal(self, other) if type(self) is type(other) else NotImplemented


def _unequal(self: Any, other: Any) -> Any:
    same = _equal(self, other)
    return same if same is NotImplemented else not same


def equal(one: Any, other: Any) -> bool:
    """Whether two values are of one type and carry the same."""
    if one is other:
        return True
    if isinstance(one, jax.Array | np.ndarray | np.generic) and isinstance(other, jax.Array | np.ndarray | np.generic):
        if one.shape != other.shape or one.dtype != other.dtype or isinstance(one, jax.core.Tracer):
            return False
        if jax.numpy.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)  # type: ignore[arg-type]
        return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind in "fcV")
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one) if field.compare]
        return all(equal(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) or (isinstance(one, float) and one != one and other != other)


def in_one_line(value: Any) -> str:
    """``Band(mean=float64 (9,), deviation=float64 (9,))``: the fields, arrays by dtype and shape."""
    names = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(value) if field.repr]
    return f"{type(value).__name__}({', '.join(f'{name}={_said(getattr(value, name))}' for name in names)})"


def _said(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray) and (value.shape or isinstance(value, jax.core.Tracer)):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return str(value)
    if type(value).__repr__ is in_one_line:
        return type(value).__name__
    if isinstance(value, Mapping) and not hasattr(type(value), "tree_flatten"):
        return f"{{{', '.join(map(str, value))}}}"
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return f"({', '.join(map(_said, value))})"
    return repr(value)


def reduced(value: Any, *fields: Any) -> tuple[Any, ...]:
    """What ``__reduce_ex__`` returns of an object that may hold a user's functions, made again of its fields.

    pickle knows functions by their name in a module; those that have none (lambdas, functions in functions) go by
    cloudpickle.

    Raises:
        ValueError: there is such a function, and no cloudpickle.
    """
    try:
        pickle.dumps(fields)
    except (pickle.PicklingError, AttributeError, TypeError):
        try:
            import cloudpickle
        except ImportError:
            said = f"{type(value).__name__} holds a function without a name in a module"
            raise ValueError(f"{said}, which must be pickled by cloudpickle (pip install cloudpickle)") from None
        return _rebuilt, (cloudpickle.dumps((type(value), fields)),)
    return type(value), fields


def _rebuilt(content: bytes) -> Any:
    kind, fields = pickle.loads(content)
    return kind(*fields)
