"""Combinators: affine layers, chains and skip connections as `Spec`s, which compose.

Every builder is a recipe over these, and so can yours be::

    layer = functools.partial(vg.dense, activation="relu", norm="layer")
    block = vg.residual(vg.networks.chain(layer(64, 64), layer(64, 64)), scheme="stable", depth=50)
    network = vg.stack(block, depth=50, input_shape=64)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.blocks import Spec, spec
from vgjax.blocks.composed import JOINS
from vgjax.blocks.dense import Affine
from vgjax.blocks.normalization import NORMS, POINTWISE
from vgjax.blocks.protocol import block_info
from vgjax.checks import finite, kinds, known, positive_integer
from vgjax.initializers import Law

Phi = str | Activation | Elementwise
"""An activation: a name, an `Activation` or a callable."""


class Normalization(NamedTuple):
    """A normalization and where it stands (`norm`)."""

    kind: str
    epsilon: float
    on: str
    groups: int
    batch: int | None

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading axes of a state."""
        return () if self.batch is None else (self.batch,)

    def block(self, features: int, dtype: str) -> Spec:
        """The normalization by itself."""
        if self.kind in POINTWISE:
            return spec(blocks.DynamicTanh, self.kind, features, dtype=dtype)
        # Left out where it means nothing, so that equal norms are equal specs.
        groups = {"groups": self.groups} if self.kind == "group" else {}
        return spec(blocks.Norm, self.kind, features, epsilon=self.epsilon, dtype=dtype, **groups)


@kinds
def norm(
    kind: str, *, epsilon: float = 1e-6, on: str = "preactivations", groups: int = 1, batch: int | None = None
) -> Normalization:
    """A normalization for the ``norm=`` of layers and builders; a kind alone means this with its defaults.

    Args:
        kind: layer, rms, group, batch (over the examples of a state) or batch_running (by running statistics); or
            what stands in its place, dyt or derf (`vgjax.blocks.DynamicTanh`; scale ``sigma_alpha``).
        epsilon: added to the variance (0 in the theory).
        on: ``"preactivations"``: W phi(norm(h)) + b; ``"activations"``: W norm(phi(h)) + b.
        groups: of the features, for ``"group"``.
        batch: examples in a state, its leading axis. ``"batch"`` needs it: there the examples depend on each other.

    Raises:
        ValueError: an unknown name, a negative epsilon, or ``"batch"`` without at least two examples.
    """
    # epsilon is that of Flax's layer norm; its batch norm has 1e-5, but here a default means the same everywhere.
    known("norm", kind, (*NORMS, *POINTWISE)), known("on", on, ("preactivations", "activations"))
    finite("epsilon", epsilon, "not negative", lambda v: v >= 0)
    if kind == "batch" and (batch is None or batch < 2):
        rule = "batch norm in training mode normalizes over the examples of a batch"
        raise ValueError(f"batch must be at least 2 for norm 'batch' ({rule}), got {batch}")
    batch = None if batch is None else positive_integer("batch", batch)
    if kind in POINTWISE and (epsilon, on, groups, batch) != (1e-6, "preactivations", 1, None):
        raise ValueError(f"norm {kind!r} takes no options, got some")
    return Normalization(kind, float(epsilon), on, positive_integer("groups", groups), batch)


@kinds
def dense(
    fan_in: int,
    fan_out: int,
    activation: Phi = "linear",
    *,
    norm: str | Normalization | None = None,
    dropout: str | None = None,
    before: Spec | None = None,
    after: Spec | None = None,
    names: tuple[str, str] = ("sigma_w", "sigma_b"),
    follows: str | None = None,
    kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Spec:
    """A fully connected layer, ``W phi(h) + b``, with what stands around its activation.

    Args:
        fan_in, fan_out: sizes of the states before and behind it.
        activation: phi.
        norm: a kind of normalization, or `norm` with its options.
        dropout: ``"bernoulli"`` or ``"gaussian"`` noise behind phi and norm, at the rate of the scale ``dropout``.
        before, after: further blocks on either side of phi, outside of the norm and of the dropout.
        names: of the scales of kernel and bias.
        follows: the scale whose value the kernel's takes where it is not given itself.
        kernel_init: gaussian, truncated, uniform, orthogonal, identity, at unit gain: E W_ij^2 = 1 / fan_in. Or any law
            ``(key, shape, dtype) -> array`` (all of `jax.nn.initializers`), or an array of shape ``(fan_in, fan_out)``:
            taken as it is and multiplied by the scale, 1 where it is not given. Theory has none of these.
        bias_init: gaussian or uniform, of variance 1; fan_in_uniform, of variance 1 / fan_in (`vgjax.networks.scheme`);
            zero: multiplied by the scale, 0 where it is not given. Or a law or an array of shape ``(fan_out,)``, as it
            is; its scale is 1 where it is not given. Theory has gaussian and zero.
        dtype: float32, or float64 within ``with jax.enable_x64(True):``.

    Raises:
        ValueError: a size below 1, an unknown name; where it is built, a law or an array of another shape or dtype.
    """
    initializers.check_law("kernel_init", kernel_init, initializers.KERNEL_INITS)
    sizes = positive_integer("fan_in", fan_in), positive_integer("fan_out", fan_out)
    around = _around(sizes[0], as_norm(norm), dropout, before, after, dtype_name(dtype))
    options = _affine(activation, kernel_init, bias_init, dtype, names, follows)
    return spec(blocks.Dense, *sizes, **options, **around)


@kinds
def conv(
    channels_in: int,
    channels_out: int,
    activation: Phi = "linear",
    *,
    kernel_size: tuple[int, ...] = (3, 3),
    strides: int | tuple[int, ...] = 1,
    padding: str = "circular",
    norm: str | Normalization | None = None,
    names: tuple[str, str] = ("sigma_w", "sigma_b"),
    follows: str | None = None,
    kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Spec:
    """A convolutional layer, ``W * phi(h) + b``, states ``(*size, channels)``.

    Args:
        channels_in, channels_out: sizes of the last axis of the states.
        kernel_size: of the window, odd, one number a dimension of the image (1 to 3).
        strides: by which the image becomes smaller, one number, or one a dimension.
        padding: ``"circular"`` (as in the theory) or ``"zero"``.
        kernel_init: gaussian, truncated, uniform, orthogonal, delta_orthogonal; or a law or an array of shape
            ``(*kernel_size, channels_in, channels_out)``, as for `dense`.
        activation, norm, names, follows, bias_init, dtype: as for `dense`.

    Raises:
        ValueError: a size below 1, an even window, or an unknown name.
    """
    initializers.check_law("kernel_init", kernel_init, initializers.CONVOLUTION_INITS)
    known("padding", padding, initializers.PADDINGS)
    channels = positive_integer("channels_in", channels_in), positive_integer("channels_out", channels_out)
    options = _affine(activation, kernel_init, bias_init, dtype, names, follows)
    around = _around(channels[0], as_norm(norm), None, None, None, options["dtype"])
    steps = np.asarray(strides).tolist()  # of any kind of whole numbers
    window = {"kernel_size": tuple(kernel_size), "padding": padding} | (
        {"strides": tuple(steps) if np.ndim(steps) else steps} if steps != 1 else {}
    )
    return spec(blocks.Conv, *channels, **options, **window, **around)


@kinds
def chain(*layers: Spec, **parts: Spec) -> Spec:
    """One block behind the other.

    Args:
        *layers: in order; their parameters stand under ``layer_1``, ``layer_2`` and so on. One alone is itself.
        **parts: instead of layers, or behind them, by name.
    """
    if len(layers) == 1 and not parts:
        return layers[0]
    return spec(blocks.Chain, **_named(layers, parts))


def _named(layers: tuple[Spec, ...], parts: dict[str, Spec]) -> dict[str, Spec]:
    """Blocks by name, those without one by their place."""
    by_place = {f"layer_{i + 1}": layer for i, layer in enumerate(layers)}
    # What the block has under a name of its own cannot be the name of a part.
    for name in parts:
        if name in by_place or name.startswith("_") or hasattr(blocks.Chain, name) or name in _TAKEN:
            raise ValueError(f"parts need names that nothing else has, got {name!r}")
    return by_place | parts


_TAKEN = ("how", "order", "defaults", "told", "rngs")


@kinds
def parallel(how: str, *layers: Spec, **parts: Spec) -> Spec:
    """Blocks side by side on one state, joined unit by unit: a gated unit is ``parallel("product", gate, up)``, maxout
    ``parallel("maximum", *[vg.dense(64, 64)] * 2)``.

    Args:
        how: ``"sum"``, ``"product"`` or ``"maximum"``.
        *layers: their parameters stand under ``layer_1``, ``layer_2`` and so on.
        **parts: instead of layers, or beside them, by name.

    Raises:
        ValueError: an unknown name, or fewer than two blocks.
    """
    known("how", how, JOINS)
    named = _named(layers, parts)
    if len(named) < 2:
        raise ValueError(f"parallel needs at least 2 blocks to join, got {len(named)}")
    return spec(blocks.Parallel, how, **named)


@kinds
def residual(
    branch: Spec,
    *,
    shortcut: Spec | None = None,
    scheme: str | None = None,
    depth: int | None = None,
    dtype: DTypeLike = "float32",
) -> Spec:
    """A skip connection, ``skip h + branch F(h)``, its branch initialized by one of the field's schemes.

    Schemes set defaults of scales; what is given in `Scales` wins. L is the depth, m the number of kernels in a branch:

    - ``"stable"``: branch = 1 / sqrt(L) (Hayou et al. 2021; as depth-muP, Yang et al. 2024);
    - ``"complete"``: branch = 1 / L (CompleteP, Dey et al. 2025);
    - ``"rezero"``, ``"skipinit"``: branch = 0 under a trainable gate (Bachlechner et al. 2020; De and Smith 2020);
    - ``"fixup"``: under a gate, the first m - 1 kernels at He's gain times L^(-1/(2m-2)), the last, whose scale is
      ``sigma_v``, at 0 (Zhang et al. 2019; without its scalar biases);
    - ``"deepnorm"``: skip = (2L)^(1/4), sigma_vo and sigma_w at (8L)^(-1/4) of their defaults, for post-LN (Wang et al.
      2022).

    Args:
        branch: F, a block from a state to a state of its shape (or of the shortcut's).
        shortcut: what the skip carries where the shape changes; left out, the state.
        scheme: one of these, or None: branch = skip = 1.
        depth: L, residual blocks in the network; stable, complete, fixup and deepnorm need it.
        dtype: of the gate.

    Raises:
        ValueError: an unknown scheme, one that needs the depth without it, or fixup for a branch of one kernel.
    """
    options: dict[str, Any] = {"dtype": dtype_name(dtype)}
    if shortcut is not None:
        options["shortcut"] = shortcut
    if known_scheme(scheme) in ("rezero", "skipinit", "fixup"):
        options["gate"] = True
    if scheme is not None:
        options["defaults"] = _scheme_defaults(scheme, branch, depth)
    return spec(blocks.Residual, branch, **options)


@kinds
def concatenated(branch: Spec) -> Spec:
    """A skip connection that keeps the state beside what is made of it, ``[h, F(h)]`` along the last axis.

    A DenseNet is ``vg.sequential(*(concatenated(vg.dense(n + i * k, k, "relu")) for i in range(L)), ...)``; a U-Net is
    ``level(level(level(bottom)))`` with ``level(inside) = chain(concatenated(chain(down, inside, up)), merge)``.

    Args:
        branch: F, a block that keeps all axes of the state but the last.
    """
    return spec(blocks.Concatenated, branch)


SCHEMES = ("stable", "complete", "rezero", "skipinit", "fixup", "deepnorm")
"""Initializations of residual branches (`residual`)."""


_DEEP = ("sigma_vo", "sigma_o", "sigma_w", "sigma_2")


def known_scheme(scheme: str | None, schemes: tuple[str, ...] = SCHEMES) -> str | None:
    """The scheme, if there is one of that name; None stays None."""
    return None if scheme is None else known("scheme", scheme, schemes)


def _scheme_defaults(scheme: str, branch: Spec, depth: int | None) -> tuple[tuple[str, float], ...]:
    if scheme in ("rezero", "skipinit"):
        return (("branch", 0.0),)
    length = positive_integer(f"depth (which scheme {scheme!r} needs)", depth)
    if scheme in ("stable", "complete"):
        return (("branch", length ** (-0.5 if scheme == "stable" else -1.0)),)
    declared = block_info(branch).scales
    if scheme == "deepnorm":
        # Wang et al. 2022, of an encoder alone; query and key kernels keep unit gain.
        beta = (8 * length) ** -0.25
        # Of what they stand at: a style has numbers of its own, also for single kernels, which then follow no other.
        own = {n: s.first for n, s in declared.items() if n in _DEEP and s.follows is None}
        return (("skip", (2 * length) ** 0.25), *((name, beta * default) for name, default in own.items()))
    kernels = [part for part in branch.nested() if issubclass(part.block, Affine)]
    if len(kernels) < 2 or "sigma_v" not in declared:
        raise ValueError(f"fixup needs a branch of at least 2 kernels, the last scaled by sigma_v, got {len(kernels)}")
    # Section 3 of Zhang et al. 2019: He's gain first, then the factor for the depth.
    gain = _he_gain(dict(kernels[-1].options)["activation"])  # type: ignore[arg-type]
    return (("sigma_w", gain * length ** (-1 / (2 * len(kernels) - 2))), ("sigma_v", 0.0))


def _he_gain(phi: Activation) -> float:
    """What keeps the mean square through a homogeneous phi, as He et al. 2015 do; 1 for others, as Fixup does."""
    if not phi.homogeneous:
        return 1.0
    return float(np.mean(np.asarray(phi.derivative(jnp.asarray([-1.0, 1.0])), float) ** 2)) ** -0.5


# --- what the recipes share -----------------------------------------------------------------------------------------


def as_norm(given: str | Normalization | None) -> Normalization | None:
    """A normalization as it was asked for; None for none."""
    return norm(given) if isinstance(given, str) else given


def dtype_name(dtype: DTypeLike) -> str:
    """The name of a dtype that networks come in, if it is switched on."""
    kind = np.dtype(dtype).name
    if kind not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    if jax.dtypes.canonicalize_dtype(kind).name != kind:
        raise ValueError(f"dtype {kind} needs jax.enable_x64(True) around the work, got it switched off")
    return kind


def _affine(
    activation: Phi, kernel_init: Law, bias_init: Law, dtype: DTypeLike, names: tuple[str, str], follows: str | None
) -> dict[str, Any]:
    initializers.check_law("bias_init", bias_init, initializers.BIAS_INITS)
    options = {"activation": activations.get(activation), "kernel_init": kernel_init, "bias_init": bias_init}
    # Left out where they are the block's own, so that equal layers are equal specs and one stage.
    named: dict[str, Any] = {"names": names} if names != ("sigma_w", "sigma_b") else {}
    named |= {"follows": follows} if follows else {}
    return {**options, "dtype": dtype_name(dtype), **named}


def _around(
    features: int,
    norm: Normalization | None,
    dropout: str | None,
    before: Spec | None,
    after: Spec | None,
    dtype: str,
) -> dict[str, Spec]:
    """The options of an affine layer that say what stands before its activation and behind."""
    place = None if norm is None else norm.on
    normed = [norm.block(features, dtype)] if norm else []
    noise = []
    if dropout is not None:
        known("dropout", dropout, ("bernoulli", "gaussian"))
        shape = (*(norm.leading if norm else ()), features)
        # One noise for every number of a state, and so one for every example of a batch that is the state.
        noise = [spec(blocks.Dropout, shape, distribution=dropout, dtype=dtype)]
    ends = {
        "before": [*([before] if before else []), *(normed if place == "preactivations" else [])],
        "after": [*(normed if place == "activations" else []), *noise, *([after] if after else [])],
    }
    return {
        name: parts[0] if len(parts) == 1 else chain(**{part.block.__name__.lower(): part for part in parts})
        for name, parts in ends.items()
        if parts
    }
