"""Scales and unit-gain draws: where the numbers of a network come from.

A kernel is drawn once at unit gain, ``E W_ij^2 = 1 / fan_in``, so that a layer keeps the mean square of what enters
it; a bias is drawn with unit variance. What multiplies them are `Scales`: named numbers that can be swept. Which names
there are, and what each number does, a block declares by `Scale`. A law or an array of a user's own is taken as it is,
and multiplied by its scale like any draw (`Law`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, finite, is_numeric, is_traced, kinds, known, positive_integer, short, takes
from vgjax.values import by_content, on_device

_Rule = tuple[str, Callable[[np.ndarray], np.ndarray]]

KINDS: dict[str, _Rule | None] = {
    "parameter": ("not negative", lambda v: v >= 0),
    "factor": None,
    "rate": ("at least 0 and below 1", lambda v: (v >= 0) & (v < 1)),
    "offset": None,
    "divisor": ("positive", lambda v: v > 0),
}
"""What a scale can do, with the rule for its values (None: any finite number). ``parameter``: multiplies parameters, so
that it stands at 1 once they have absorbed it, and in a head; where layers share their parameters it is one number.
``factor``: multiplies a state. ``rate``: a probability below 1. ``offset``: is added. ``divisor``: divides."""


class Scale(NamedTuple):
    """A scale as a block declares it.

    Attributes:
        default: what it stands at where it is not given; one number, or one a layer of a network of that depth.
        kind: what it does, one of `KINDS`.
        follows: the scale whose value it takes where it is not given itself: one kernel's own, of several that
            otherwise share one.
    """

    default: float | tuple[float, ...]
    kind: str = "factor"
    follows: str | None = None

    @property
    def first(self) -> float:
        """The default, of the first layer."""
        return self.default[0] if isinstance(self.default, tuple) else self.default

    @property
    def unit(self) -> float:
        """What it stands at where nothing is scaled: 1 for what multiplies parameters, else the default."""
        return 1.0 if self.kind == "parameter" else self.first

    @kinds
    def check(self, name: str, value: ArrayLike) -> None:
        """Raise ValueError unless a value keeps the rule of this kind of scale; traced values pass."""
        finite(name, value, *(KINDS[self.kind] or ()))


@by_content
@jax.tree_util.register_pytree_with_keys_class
class Scales(Mapping[str, Any]):
    """Named numbers that scale a network; each a scalar or one value per layer. Read them as attributes or by name.

    An open set: which names a network takes, and what values, its blocks declare (`Network.scales`), and that is
    checked where a network is used. ``sigma_w`` and ``sigma_b`` are standard deviations: ``Var W_ij = sigma_w^2 /
    fan_in``, ``Var b_i = sigma_b^2``.

    Args:
        **scales: numbers or arrays, shape ``()`` or ``(depth,)``. A value per layer belongs to the blocks; the stem
            takes the first.

    Raises:
        ValueError: a value that is no real number, or not finite.
    """

    _scales: dict[str, Array]

    @kinds
    def __init__(self, **scales: ArrayLike):
        self._scales = {name: _real(name, value) for name, value in scales.items()}

    @classmethod
    def _of(cls, scales: dict[str, Any]) -> "Scales":
        """Scales of values that are known to be right, taken as they are."""
        # No checks: inside a compiled program values are tracers, and were checked at the edge.
        new = object.__new__(cls)
        new._scales = scales
        return new

    def __getattr__(self, name: str) -> Array:
        # Underscores first: while an object is copied or unpickled it has no `_scales` to look into yet.
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._scales:
            raise AttributeError(f"no scale {name!r} here; there are {', '.join(self._scales) or 'none'}")
        return self._scales[name]

    def __getitem__(self, name: str) -> Array:
        return self._scales[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scales)

    def __len__(self) -> int:
        return len(self._scales)

    def __repr__(self) -> str:
        return f"Scales({', '.join(f'{name}={value}' for name, value in self.items())})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[jax.tree_util.GetAttrKey, Array]], tuple[str, ...]]:
        # By name: the same scales given in another order are the same program.
        names = tuple(sorted(self._scales))
        return [(jax.tree_util.GetAttrKey(name), self._scales[name]) for name in names], names

    def tree_flatten(self) -> tuple[list[Array], tuple[str, ...]]:
        names = tuple(sorted(self._scales))
        return [self._scales[name] for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: list[Array]) -> "Scales":
        return cls._of(dict(zip(names, values, strict=True)))


def _real(name: str, value: ArrayLike) -> Array:
    if not is_traced(value):
        kind = np.asarray(value).dtype
        # Booleans are refused: True would pass for a scale of 1.
        if not (jnp.issubdtype(kind, jnp.integer) or jnp.issubdtype(kind, jnp.floating)):
            raise ValueError(f"{name} must be a number or an array of numbers, got {value!r:.80}")
        finite(name, value)
    return on_device(value)


# --- unit-gain draws ------------------------------------------------------------------------------------------------

Initializer = Callable[[Array, tuple[int, ...], Any], Array]
"""``(key, shape, dtype) -> draw`` of that shape, as all of `jax.nn.initializers` are."""

Law = str | Initializer | Array | np.ndarray
"""How parameters are drawn: a unit-gain law by name; or an `Initializer`, or the numbers themselves, as they are."""


def gaussian(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """W_ij ~ N(0, 1 / fan_in), shape ``(fan_in, fan_out)``."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[0])


def truncated(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A Gaussian cut at two standard deviations, of variance 1 / fan_in (what Flax's ``lecun_normal`` draws)."""
    # As in `jax.nn.initializers`: the cut takes 23% of the variance, which is given back.
    cut_deviation = 0.87962566103423978  # of N(0, 1) cut to [-2, 2]
    return jax.random.truncated_normal(key, -2, 2, shape, dtype) / (cut_deviation * math.sqrt(shape[0]))


def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """W_ij ~ U(-a, a) with a = sqrt(3 / fan_in), so that the variance is 1 / fan_in."""
    a = math.sqrt(3 / shape[0])
    return jax.random.uniform(key, shape, dtype, -a, a)


def orthogonal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Haar-distributed: W^T W = 1 (fan_out <= fan_in) or W W^T = (fan_out / fan_in) 1; E W_ij^2 = 1 / fan_in."""
    fan_in, fan_out = shape
    # A wide kernel has orthonormal rows alone: without the factor its entries would have mean square 1 / fan_out.
    return jax.nn.initializers.orthogonal(math.sqrt(max(1.0, fan_out / fan_in)))(key, shape, dtype)


def identity(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The identity, cut or padded by zeros (an identity RNN: Le, Jaitly and Hinton 2015); nothing is random."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


KERNEL_INITS: dict[str, Initializer] = {
    "gaussian": gaussian,
    "truncated": truncated,
    "uniform": uniform,
    "orthogonal": orthogonal,
    "identity": identity,
}
BIAS_INITS: dict[str, Callable[[Array, int, Any, int], Array]] = {
    "gaussian": lambda key, size, dtype, fan_in: jax.random.normal(key, (size,), dtype),
    "uniform": lambda key, size, dtype, fan_in: jax.random.uniform(key, (size,), dtype, -(3**0.5), 3**0.5),
    "fan_in_uniform": lambda key, size, dtype, fan_in: jax.random.uniform(
        key, (size,), dtype, -((3 / fan_in) ** 0.5), (3 / fan_in) ** 0.5
    ),
    "zero": lambda key, size, dtype, fan_in: jnp.zeros(size, dtype),
}
"""Biases of unit variance; ``fan_in_uniform`` has that of a kernel's entries, 1 / fan_in, and so PyTorch's default at
``sigma_b = 1 / sqrt(3)``; ``zero`` is that of most libraries."""


def check_law(name: str, law: Any, names: Iterable[str]) -> None:
    """Raise ValueError unless a law is one of the names (the nearest is named), a function, or real and finite
    numbers."""
    if isinstance(law, str):
        known(name, law, names)
    elif is_numeric(law) and hasattr(law, "dtype"):
        _real(name, law)
    elif not takes(law, "key", "shape", "dtype"):
        also = ", or a function (key, shape, dtype) -> array, or an array"
        raise ValueError(f"{name} must be one of {', '.join(names)}{also}, got {short(law)}")


def as_it_is(name: str, law: Initializer | Array | np.ndarray) -> Initializer:
    """A user's law, or the numbers themselves, as a draw that is of the shape and the dtype which are asked for."""

    def draw(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        drawn = jnp.asarray(law(key, shape, dtype) if callable(law) else np.asarray(law).astype(dtype))
        if drawn.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {drawn.shape}")
        # Given numbers are rounded, as everywhere; a law that overlooks the dtype would lose digits in silence.
        if drawn.dtype != dtype:
            raise ValueError(f"{name} must draw in the dtype it is called with, {np.dtype(dtype)}, got {drawn.dtype}")
        return drawn

    return draw


def kernel_initializer(law: Law) -> Initializer:
    """The draw of a kernel, shape ``(fan_in, fan_out)``, by a name in `KERNEL_INITS` or by a law of one's own.

    Raises:
        ValueError: an unknown name; the nearest known one is named. Where it draws: another shape or dtype.
    """
    check_law("kernel_init", law, KERNEL_INITS)
    return KERNEL_INITS[law] if isinstance(law, str) else as_it_is("kernel_init", law)


def bias_initializer(law: Law) -> Callable[[Array, int, Any, int], Array]:
    """The draw of a bias, ``(key, size, dtype, fan_in) -> draw`` of shape ``(size,)``, by a name in `BIAS_INITS` or by
    a law of one's own, which gets ``(key, (size,), dtype)``.

    Raises:
        ValueError: as for `kernel_initializer`.
    """
    check_law("bias_init", law, BIAS_INITS)
    if isinstance(law, str):
        return BIAS_INITS[law]
    draw = as_it_is("bias_init", law)
    return lambda key, size, dtype, fan_in: draw(key, (size,), dtype)


def bias_default(law: Law) -> float:
    """What the scale of a bias stands at where it is not given: 0 for the laws by name, of which theory has none; 1 for
    one's own, which was not given to be multiplied by 0."""
    return 0.0 if isinstance(law, str) else 1.0


def named(law: Law) -> str | None:
    """The name of a law; None for one's own, of which theory knows nothing."""
    return law if isinstance(law, str) else None


def law_name(law: Any) -> str:
    """A law as a word, the same in every process; of what holds given numbers, their shape."""
    if isinstance(law, str):
        return law
    if hasattr(law, "array"):
        return f"given {'x'.join(map(str, law.array.shape))}"
    return str(getattr(law, "__qualname__", type(law).__name__)).replace(".<locals>.", ".")


PADDINGS = {"circular": "CIRCULAR", "zero": "SAME"}
"""Paddings of convolutions, and what Flax calls them."""

CONVOLUTION_INITS = ("gaussian", "truncated", "uniform", "orthogonal", "delta_orthogonal")


def convolution_initializer(
    law: Law, kernel_size: tuple[int, ...], channels_in: int, channels_out: int
) -> Callable[[Array, Any], Array]:
    """The draw of a convolution's kernel, shape ``(*kernel_size, channels_in, channels_out)``.

    fan_in is channels_in times the window, so an image keeps its mean square. ``orthogonal`` draws the kernel as one
    matrix of fan_in rows. ``delta_orthogonal`` is orthogonal at the centre of the window and 0 elsewhere: under
    circular padding the whole convolution then keeps every norm. A law of one's own gets the shape as it is.

    Raises:
        ValueError: an unknown name, an even kernel (whose window has no centre), or delta_orthogonal with channels_in
            > channels_out.

    Source: Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", algorithm 1.
    """
    check_law("kernel_init", law, CONVOLUTION_INITS)
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(f"kernel_size must be odd to keep the image's size, got {kernel_size}")
    # Every pixel that comes out sums over the window, which therefore counts as inputs.
    fan_in, shape = math.prod(kernel_size) * channels_in, (*kernel_size, channels_in, channels_out)
    if not isinstance(law, str):
        draw = as_it_is("kernel_init", law)
        return lambda key, dtype: draw(key, shape, dtype)
    if law != "delta_orthogonal":
        return lambda key, dtype: KERNEL_INITS[law](key, (fan_in, channels_out), dtype).reshape(shape)
    if channels_in > channels_out:
        raise ValueError(f"delta_orthogonal needs channels_in <= channels_out, got {channels_in} and {channels_out}")
    # Anywhere else in the window it would shift the image as well.
    centre = tuple(size // 2 for size in kernel_size)
    return lambda key, dtype: (
        jnp.zeros(shape, dtype).at[centre].set(orthogonal(key, (channels_in, channels_out), dtype))
    )


class Scheme(NamedTuple):
    """A named initialization scheme as unit-gain draws and the scales that turn them into the scheme."""

    kernel_init: str
    sigma_w: float
    bias_init: str = "zero"
    sigma_b: float = 0.0


@kinds
def scheme(name: str, fan_in: int, fan_out: int) -> Scheme:
    """LeCun's, Glorot's, He's, PyTorch's and SIREN's initializations as points of one map: unit-gain draws, sigma_w,
    sigma_b.

    ``Var W = sigma_w^2 / fan_in`` with sigma_w^2 = 1 (LeCun), 2 fan_in / (fan_in + fan_out) (Glorot), 2 (He), 1/3
    (PyTorch, whose biases have the same variance). ``normal`` is what Flax and Keras draw under that name: a Gaussian
    cut at two standard deviations, its variance restored; ``torch`` is ``kaiming_uniform_(a=sqrt(5))``, kernel and bias
    from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), whatever the sizes are. ``siren`` is for layers behind a sin, U(-sqrt(6/
    fan_in), sqrt(6/fan_in)); ``siren_first``, for the first kernel, 30 U(-1/fan_in, 1/fan_in): its sines are waves of
    many periods, of an arcsine law. Behind them variances tend to q = 1 - e^(-2q) = .7968, and a squared gradient grows
    by 2 - q = 1.2032 a layer.

    Args:
        name: ``{lecun,glorot,he}_{normal,uniform}``, ``torch_linear``, ``torch_conv``, ``siren`` or ``siren_first``.
        fan_in, fan_out: sizes of the kernel; fan_in of a convolution counts its window.

    Raises:
        ValueError: an unknown name, or a size below 1.

    Source: of SIREN: Sitzmann et al. 2020, "Implicit neural representations with periodic activation functions",
    section 3.2, where omega_0 = 30 of the hidden layers cancels.
    """
    fan_in, fan_out = positive_integer("fan_in", fan_in), positive_integer("fan_out", fan_out)
    variances = {"lecun": 1.0, "glorot": 2 * fan_in / (fan_in + fan_out), "he": 2.0}
    kernel_inits = {"normal": "truncated", "uniform": "uniform"}
    torch = Scheme("uniform", 3**-0.5, "fan_in_uniform", 3**-0.5)
    schemes = {
        f"{author}_{shape}": Scheme(draw, math.sqrt(variance))
        for author, variance in variances.items()
        for shape, draw in kernel_inits.items()
    }
    schemes |= {"torch_linear": torch, "torch_conv": torch}
    schemes |= {"siren": Scheme("uniform", 2**0.5), "siren_first": Scheme("uniform", 30 / math.sqrt(3 * fan_in))}
    return schemes[known("scheme", name, schemes)]
