"""What the builders share: affine layers with what stands around their activation, residual blocks, checks."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.blocks import Spec, spec
from vgjax.blocks.normalization import NORMS
from vgjax.checks import known, positive_integer
from vgjax.networks.network import Stage

Phi = str | Activation | Elementwise
RESIDUALS = ("plain", "pre", "post")
SCHEMES = ("stable", "rezero", "skipinit", "fixup")
PLACES = ("preactivations", "activations")


class Branch(NamedTuple):
    """How a residual branch is made: its kind, and its kernels."""

    kind: str
    layers: int


class Normed(NamedTuple):
    """A normalization and where it stands: before phi, or behind it."""

    kind: str
    on_activations: bool
    epsilon: float
    groups: int


@dataclass(frozen=True)
class Layers:
    """What the affine layers of one network have in common.

    Attributes:
        phi: the activation.
        drawn: laws and dtype: options of every affine block.
        norm: the normalization around phi, or None.
        window: options of convolutions.
        dropout: law, and the leading axes of the state; or None.
        pool: axes that a head averages over.
    """

    phi: Activation
    drawn: dict[str, Any]
    norm: Normed | None = None
    window: tuple[tuple[str, Any], ...] = ()
    dropout: tuple[str, tuple[int, ...]] | None = None
    pool: int = 0

    @property
    def dimensions(self) -> int:
        """Of the image."""
        return len(dict(self.window)["kernel_size"])

    def linear(self, kernel_init: str | None = None) -> "Layers":
        """The same without what stands around the product; a delta-orthogonal stem, which may widen or narrow, is
        Gaussian."""
        kernel_init = kernel_init or self.drawn["kernel_init"]
        drawn = self.drawn | {
            "kernel_init": "gaussian" if kernel_init in ("delta_orthogonal", "identity") else kernel_init
        }
        return replace(self, phi=activations.get("linear"), drawn=drawn, norm=None, dropout=None)

    def dense(self, fan_in: int, fan_out: int, **options: Any) -> Spec:
        """A fully connected layer."""
        about = {"activation": self.phi, **self.drawn, **self._around(fan_in), **options}
        return spec(blocks.Dense, fan_in, fan_out, **about)

    def conv(self, channels_in: int, channels_out: int, **options: Any) -> Spec:
        """A convolutional layer."""
        about = {"activation": self.phi, **self.drawn, **dict(self.window), **self._around(channels_in), **options}
        return spec(blocks.Conv, channels_in, channels_out, **about)

    def readout(self, channels: int, outputs: int, axes: int) -> Spec:
        """The head of a convolutional network."""
        drawn = self.drawn | {"kernel_init": "gaussian"}
        return replace(self, drawn=drawn, pool=axes).dense(
            channels, positive_integer("outputs", outputs), bias_init="zero"
        )

    def norm_of(self, features: int) -> Spec:
        """The normalization by itself."""
        assert self.norm is not None
        about = {"epsilon": self.norm.epsilon, "dtype": self.drawn["dtype"]}
        if self.norm.kind == "group":
            if features % self.norm.groups:
                raise ValueError(f"groups must divide the {features} features, got {self.norm.groups}")
            about["groups"] = self.norm.groups
        return spec(blocks.Norm, self.norm.kind, features, **about)

    def _around(self, features: int) -> dict[str, Any]:
        around: dict[str, list[Spec]] = {"before": [], "after": []}
        if self.norm:
            around["after" if self.norm.on_activations else "before"].append(self.norm_of(features))
        if self.dropout:
            kernel_init, leading = self.dropout
            around["after"].append(
                spec(blocks.Dropout, (*leading, features), distribution=kernel_init, dtype=self.drawn["dtype"])
            )
        if self.pool:
            around["after"].append(spec(blocks.Pool, self.pool))
        return {name: _chained(parts) for name, parts in around.items() if parts}


def _chained(parts: list[Spec]) -> Spec:
    return parts[0] if len(parts) == 1 else spec(blocks.Chain, **{p.block.__name__.lower(): p for p in parts})


GATED = ("rezero", "skipinit", "fixup")


def residual_block(
    affine: Callable[..., Spec],
    branch: Branch,
    phi: Activation,
    width: int,
    inside: int,
    scheme: str | None,
    dtype: DTypeLike,
) -> Spec:
    """One residual block of a stack of equal widths."""
    if scheme is not None:
        known("scheme", scheme, SCHEMES)
    kind, count = branch
    if count < 2 and (kind != "pre" or scheme == "fixup"):
        what = "scheme 'fixup'" if kind == "pre" else f"residual {kind!r}"
        raise ValueError(f"branch_layers must be at least 2 for {what}, got {count}")
    sizes = [width, *[inside] * (count - 1), width]
    layers = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        options: dict[str, Any] = {"names": ("sigma_v", "sigma_a")} if i and i == count - 1 else {}
        if i == 0 and kind != "pre":
            options |= {"activation": activations.get("linear"), "before": None, "after": None}
        layers[f"layer_{i + 1}"] = affine(a, b, **options)
    made = spec(blocks.Chain, **layers) if count > 1 else layers["layer_1"]
    gate = {"gate": True} if scheme in GATED else {}
    block = spec(blocks.Residual, made, dtype=dtype_name(dtype), **gate)
    return block if kind != "post" else spec(blocks.Chain, residual=block, phi=spec(blocks.Activate, activation=phi))


def scheme_defaults(
    name: str | None, branch: Branch | None, depth: int, phi: Activation
) -> tuple[tuple[str, float], ...]:
    """The scales that a named residual scheme sets."""
    if name is None:
        return ()
    known("scheme", name, SCHEMES if branch else SCHEMES[:3])
    if name == "stable":
        return (("branch", depth**-0.5),)
    if name in ("rezero", "skipinit"):
        return (("branch", 0.0),)
    assert branch is not None
    slopes = np.asarray(phi.derivative(jnp.asarray([-1.0, 1.0])), float) if phi.homogeneous else np.ones(2)
    gain = float(np.mean(slopes**2)) ** -0.5  # He's, which Fixup starts from
    return (("sigma_w", gain * depth ** (-1 / (2 * branch.layers - 2))), ("sigma_v", 0.0))


def embedding(alone: bool) -> dict[str, Any]:
    """Options of a stem whose kernel has a scale of its own, ``sigma_in``, which schemes for blocks leave alone."""
    return {"names": ("sigma_in", "sigma_b")} if alone else {}


def drawn_as(
    kernel_init: str, bias_init: str, dtype: DTypeLike, kernel_inits: Sequence[str] = tuple(initializers.KERNEL_INITS)
) -> dict[str, Any]:
    """The options of every affine block, checked."""
    known("kernel_init", kernel_init, kernel_inits), known("bias_init", bias_init, initializers.BIAS_INITS)
    return {"kernel_init": kernel_init, "bias_init": bias_init, "dtype": dtype_name(dtype)}


def dtype_name(dtype: DTypeLike) -> str:
    """The name of a dtype that networks come in, if it is switched on."""
    kind = np.dtype(dtype).name
    if kind not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    if jax.dtypes.canonicalize_dtype(kind).name != kind:
        raise ValueError(f"dtype {kind} needs jax.enable_x64(True) around the work, got it switched off")
    return kind


def norm_around(norm: str | None, norm_on: str, epsilon: float, groups: int) -> Normed | None:
    """A normalization as it was asked for, checked; None for none."""
    if norm is None:
        return None
    on_activations = known("norm_on", norm_on, PLACES) == "activations"
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    return Normed(known("norm", norm, NORMS), on_activations, float(epsilon), positive_integer("groups", groups))


def leading_axes(batch: int | None, norm: str | None) -> tuple[int, ...]:
    """The leading axes of a state."""
    if norm == "batch" and (batch is None or batch < 2):
        rule = "batch norm in training mode normalizes over the examples of a batch"
        raise ValueError(f"batch must be at least 2 for norm='batch' ({rule}), got {batch}")
    return () if batch is None else (positive_integer("batch", batch),)


def image_shape(size: int | Sequence[int]) -> tuple[int, ...]:
    """The size of an image, one number a dimension."""
    image = tuple(positive_integer("size", n) for n in np.atleast_1d(np.asarray(size, object)))
    if not 1 <= len(image) <= 3:
        raise ValueError(f"size must have 1, 2 or 3 dimensions, got {len(image)}")
    return image


def window(kernel_size: int, padding: str, dimensions: int) -> tuple[tuple[str, Any], ...]:
    """The options of a convolution that keeps the size of its image."""
    size = positive_integer("kernel_size", kernel_size)
    if size % 2 == 0:
        raise ValueError(f"kernel_size must be odd to keep the image's size, got {size}")
    known("padding", padding, initializers.PADDINGS)
    return (("kernel_size", (size,) * dimensions), ("padding", padding))


def in_stages(specs: list[Spec], tied: bool = False) -> tuple[Stage, ...]:
    """Equal blocks in a row become one stage, if they keep the state's shape; a block that changes it stands alone."""
    stages: list[Stage] = []
    for made in specs:
        keeps_shape = made.arguments[:1] == made.arguments[1:2] or made.block not in (blocks.Dense, blocks.Conv)
        if stages and stages[-1].spec == made and keeps_shape:
            stages[-1] = replace(stages[-1], depth=stages[-1].depth + 1)
        else:
            stages.append(Stage(made, 1, tied))
    return tuple(stages)
