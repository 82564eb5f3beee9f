"""Input checks at the edge: one sentence with name, rule and value, before any work is done.

Two steps. Kinds (a network where a network stands, a number where a number stands) are read off the annotations of
every public function by `kinds`; values (a size above 0, a known name) are checked by hand with what stands below.
"""

import difflib
import functools
import inspect
import numbers
import re
import threading
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar

import jax
import jax.typing
import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.door import is_bearable
from beartype.vale import Is, IsInstance
from jax.typing import DTypeLike

P = ParamSpec("P")
R = TypeVar("R")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


# --- kinds ----------------------------------------------------------------------------------------------------------

_ARRAYS = (np.ndarray, np.generic, jax.Array)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is one real number that is known now, of Python, of numpy, or an array without axes."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return value.shape == () and not is_traced(value) and _real(value.dtype) and value.dtype != bool
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_numeric(value: Any) -> bool:
    """Whether a value makes an array of real numbers or of truth values."""
    if isinstance(value, (bool, np.bool_)):
        return False
    if not isinstance(value, _ARRAYS):
        try:
            value = np.asarray(value)
        except jax.errors.TracerArrayConversionError:
            return all(is_numeric(each) for each in value)
        except (ValueError, TypeError):
            return False
    return _real(value.dtype)


@functools.cache
def _real(dtype: Any) -> bool:
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))


def is_float_dtype(value: Any) -> bool:
    """Whether a value names a dtype that networks come in, float32 or float64."""
    try:
        return isinstance(value, (str, type, np.dtype)) and np.dtype(value).name in ("float32", "float64")
    except TypeError:
        return False


def _listed(holds: Callable[[Any], bool]) -> Any:
    """A list, or an array of one axis, for all of whose members something holds."""

    def all_hold(value: Any) -> bool:
        if isinstance(value, (np.ndarray, jax.Array)):
            return value.ndim == 1 and not is_traced(value) and all(holds(each) for each in np.asarray(value))
        return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(map(holds, value))

    return Annotated[object, Is[all_hold]]


ArrayLike: TypeAlias = Annotated[jax.typing.ArrayLike | Sequence[Any], Is[is_numeric]]
"""What numpy makes an array of numbers of: JAX's own type leaves out lists of them."""


def is_key(value: Any) -> bool:
    """Whether an array is one random key; an old one (`jax.random.PRNGKey`) is known by its shape."""
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.dtype == np.uint32 and value.shape in ((2,), (4,))


RandomKey: TypeAlias = Annotated[jax.Array, Is[is_key]]
DtypeName: TypeAlias = Literal["float32", "float64"]
FloatDtype: TypeAlias = Annotated[Any, Is[is_float_dtype]]
AnyArray: TypeAlias = np.ndarray | jax.Array
"""For shapes: ``Num[AnyArray, "rows columns"]``, which are checked too."""

LARGEST = 2**31 - 1
"""No machine holds more of anything that is counted here."""


def is_size(value: Any) -> bool:
    """Whether a value counts something: at least one."""
    return is_whole(value) and 1 <= value <= LARGEST


# Of a lambda beartype would want the source, and parse this file for it, a tenth of the library's import.
Size: TypeAlias = Annotated[int, Is[is_size]]


class _WrongKind(TypeError):
    """What beartype raises here."""


_CONF = BeartypeConf(
    # beartype looks at one member of a list, chosen at random, and knows no numbers but Python's. What else numpy
    # makes an array of (a pandas.Series) is one too.
    hint_overrides=FrozenDict(
        {
            int: Annotated[object, Is[is_whole]],
            float: Annotated[object, Is[is_number]],
            bool: Annotated[object, IsInstance[bool, np.bool_]],
            Sequence[int]: _listed(is_whole),
            tuple[int, ...]: _listed(is_whole),
            Sequence[float]: _listed(is_number),
            tuple[float, ...]: _listed(is_number),
            Sequence[str]: _listed(lambda value: isinstance(value, str)),
            ArrayLike: Annotated[object, Is[is_numeric]],
            DTypeLike: Annotated[object, Is[is_float_dtype]],
            np.ndarray: Annotated[object, IsInstance[_ARRAYS] & Is[is_numeric]],
        }
    ),
    is_color=False,
    violation_param_type=_WrongKind,
)

_WORDS: dict[Any, str] = {
    ArrayLike: "a number or an array of numbers",
    RandomKey: "a key (of jax.random.key)",
    jax.Array: "an array of JAX",
    np.ndarray: "an array",
    DTypeLike: "float32 or float64",
    FloatDtype: "float32 or float64",
    Size: f"a whole number from 1 to {LARGEST}",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    "str": "a string",
    "Network": "a Network (of vgjax.mlp and its like)",
    "Parameters": "Parameters (of vgjax.init)",
    "Scales": "Scales (vgjax.Scales(sigma_w=...))",
    "Measurement": "a measurement (of vgjax.gains and its like)",
    "Spec": "a Spec of a block (of vgjax.dense and its like)",
    "Normalization": "a norm (of vgjax.norm)",
    "Branch": "a branch (of vgjax.networks.branch)",
    "Result": "a Result (of vgjax.sweep)",
    "Examples": "Examples (vgjax.data.Examples(inputs, labels))",
    "Training": "a Training (of vgjax.train)",
    "Axes": "matplotlib Axes",
    "Figure": "a matplotlib Figure",
    "FigureBase": "a matplotlib Figure",
    "Data": "Examples (vgjax.data.Examples(inputs, labels))",
    "Rngs": "flax.nnx.Rngs",
    "Module": "a flax.nnx.Module (into which a module of Linen or Equinox has to be rewritten)",
    "ScalarMappable": "what matplotlib draws with colours",
    "Line2D": "a line of matplotlib",
    "GradientTransformation": "an optax optimizer",
    "Hashable": "hashable",
    "Spectrum": "a Spectrum (of vgjax.log_singular_values)",
    "Comparison": "a Comparison (of vgjax.compare)",
    "Band": "a Band (of vgjax.theory.band)",
    "FloatExp": "a FloatExp",
    "PathLike": "a path",
}
"""How kinds are called, by type or by the name of a class that stands above this module."""

_PLURALS = {int: "whole numbers", float: "numbers", str: "strings"}


def kinds(decorated: Decorated) -> Decorated:
    """Check the kinds of what a public function is given (of a class: its constructor), as its annotations say.

    The check is beartype's; what it finds is told in a sentence of ours.

    Raises:
        ValueError: when called: ``name must be kind, got value``.
    """
    if inspect.isclass(decorated):
        decorated.__init__ = kinds(decorated.__init__)  # type: ignore[method-assign]
        return decorated

    @functools.cache
    def check() -> Callable[..., None]:
        # At the first call: some kinds are of modules that import this one, or are heavy (matplotlib). What the
        # function returns is its own affair.
        same = functools.wraps(decorated)(lambda *args, **kwargs: None)
        same.__annotations__ = {name: hint for name, hint in decorated.__annotations__.items() if name != "return"}
        checked = beartype(conf=_CONF)(same)
        shapes = any(hasattr(each, "dim_str") for hint in same.__annotations__.values() for each in _members(hint))
        return jaxtyping.jaxtyped(checked, typechecker=None) if shapes else checked

    @functools.wraps(decorated)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            check()(*args, **kwargs)
        except _WrongKind as wrong:
            sentence = _sentence(decorated, args, kwargs, str(wrong))
        else:
            return decorated(*args, **kwargs)
        raise ValueError(sentence)

    wrapper.checks_kinds = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _sentence(function: Callable[..., Any], args: Any, kwargs: Any, complaint: str) -> str:
    """What beartype complains about, in one line."""
    signature = inspect.signature(function)
    name = re.search(r"parameter (\w+)=", complaint)[1]  # type: ignore[index]
    parameter, value = signature.parameters[name], signature.bind(*args, **kwargs).arguments[name]
    if parameter.kind is parameter.VAR_POSITIONAL:
        value = next(each for each in value if not is_bearable(each, parameter.annotation, conf=_CONF))
    if parameter.kind is parameter.VAR_KEYWORD:
        name, value = next(one for one in value.items() if not is_bearable(one[1], parameter.annotation, conf=_CONF))
    return f"{name} must be {_words(parameter.annotation)}, got {short(value)}"


def _words(hint: Any) -> str:
    """A kind as people say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.Hashable) and hint in _WORDS:
        return _WORDS[hint]
    if origin in (typing.Union, types.UnionType):
        words = [*dict.fromkeys(_words(each) for each in arguments if each is not type(None))]
        return f"{', '.join(words[:-1])} or {words[-1]}" if words[1:] else words[0]
    if origin is Annotated:  # a kind may bring its own words
        return next((each for each in arguments[1:] if isinstance(each, str)), None) or _words(arguments[0])
    if hasattr(hint, "dim_str"):
        of = "truth values" if hint.dtype is jaxtyping.Bool else "numbers"
        return f"an array of {of} of shape ({', '.join(hint.dim_str.split())})"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list, Sequence, Iterable):
        return f"a list of {_PLURALS.get(arguments[0]) or _words(arguments[0])}"
    if origin in (Mapping, dict):
        return f"a dict of which every value is {_words(arguments[1])}" if arguments[1] is not Any else "a dict"
    if origin is Callable:
        return "a function"
    if origin is type:
        return f"a class of {_words(arguments[0]).removeprefix('a ')}"
    name = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", getattr(hint, "__name__", "thing"))
    name = name.split(".")[-1].split("[")[0]
    return _WORDS.get(name, f"a{'n' if name[0] in 'AEIOU' else ''} {name}")


def short(value: Any) -> str:
    """A value as it is said in a sentence: itself if that is short, else what it is."""
    if isinstance(value, (np.ndarray, jax.Array)):
        if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            return "a key" if value.shape == () else f"keys of shape {value.shape}"
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    said = repr(value) if isinstance(value, (type(None), bool, numbers.Number, str, bytes, Sequence, Mapping)) else ""
    if 0 < len(said) <= 60 and "\n" not in said and " at 0x" not in said:
        return said
    return f"the function {value.__name__}" if inspect.isroutine(value) else type(value).__name__


def takes(function: Any, *arguments: str) -> bool:
    """Whether a callable can be called with so many arguments in a row; what does not tell its own counts as one."""
    if not callable(function) or inspect.isclass(function):
        return False
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # of some builtins nothing is known
        return True
    return True


# --- values ---------------------------------------------------------------------------------------------------------


def known(kind: str, name: Any, names: Iterable[str], also: str = "") -> str:
    """The name, if it is one of the names; else one sentence that lists them and says which is nearest."""
    names = list(names)
    if name in names:
        return str(name)
    meant = [each for each in _meanings(str(name)) if each in names]
    near = meant or difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{kind} must be one of {', '.join(names)}{also}, got {name!r}{hint}")


_SYNONYMS = {
    "kaiming": "he",
    "msra": "he",
    "xavier": "glorot",
    "normal": "gaussian",
    "haar": "orthogonal",
    "eye": "identity",
    "zeros": "zero",
    "swish": "silu",
    "logistic": "sigmoid",
    "hardtanh": "hard_tanh",
    "hardswish": "hard_swish",
    "leakyrelu": "leaky_relu",
    "sine": "sin",
    "atan": "arctan",
    "none": "linear",
    **dict.fromkeys(("batchnorm", "batch_norm"), "batch"),
    **dict.fromkeys(("layernorm", "layer_norm"), "layer"),
    **dict.fromkeys(("rmsnorm", "rms_norm"), "rms"),
    **dict.fromkeys(("groupnorm", "group_norm"), "group"),
    "vanilla": "simple",
    "elman": "simple",
    "same": "zero",
    "periodic": "circular",
    "preact": "pre",
    **dict.fromkeys(("crossentropy", "softmax", "nll"), "cross_entropy"),
    **dict.fromkeys(("mse", "mean_squared_error", "l2"), "squared_error"),
}
"""Names that the field has for what has another name here; also as parts of names (``kaiming_normal``)."""


def _meanings(name: str) -> list[str]:
    """What somebody may mean by a name, in the words used here."""
    name = name.lower().replace("-", "_")
    first, *rest = name.split("_")
    return [_SYNONYMS.get(name, name), "_".join([_SYNONYMS.get(first, first), *rest])]


def positive_integer(name: str, value: Any, most: int = LARGEST) -> int:
    """The value as an int, if it is a whole number of at least 1, and no more than a machine holds."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value)


def not_empty(name: str, values: Any) -> None:
    """Pass what holds something."""
    if not len(values):
        raise ValueError(f"{name} must hold at least one, got none")


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
