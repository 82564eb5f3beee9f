"""Plans: what of a network has a kernel and what has none, for passes that draw no kernel.

A plan is a chain of nodes, read off a block's `Spec`: affine layers, skip connections around chains, and parts without
a kernel, which are the library's own blocks. Anything else is refused by name.
"""

import functools
from dataclasses import dataclass, replace

import jax

from vgjax import blocks, initializers
from vgjax.blocks import Spec, spec
from vgjax.blocks.dense import Activity
from vgjax.implicit.frames import LAWS, Kernel
from vgjax.networks.layer import draw
from vgjax.networks.network import Network, state_shapes


@dataclass(frozen=True)
class AffineNode:
    """``sigma_w K activity(h) + sigma_b z``.

    Attributes:
        path: where its parameters stand in the block, ``"branch/"``.
        activity: what stands in front of the kernel.
        kernel: K.
        bias_init: how z is drawn.
        names: of the two scales.
    """

    path: str
    activity: Spec
    kernel: Kernel
    bias_init: str
    names: tuple[str, str]


@dataclass(frozen=True)
class PartNode:
    """A block without a kernel."""

    path: str
    part: Spec


@dataclass(frozen=True)
class SkipNode:
    """``skip shortcut(h) + branch F(h)``.

    Attributes:
        path: as above.
        branch, shortcut: chains; without a shortcut the state itself.
        gate: whether the branch has a trainable factor, drawn as 1.
    """

    path: str
    branch: "Plan"
    shortcut: "Plan | None"
    gate: bool


Plan = tuple[AffineNode | PartNode | SkipNode, ...]

REMEDY = "weights='drawn' takes any network"


@functools.cache
def plan_of(block: Spec, path: str = "") -> Plan:
    """The plan of a block.

    Raises:
        ValueError: a block with a kernel that is none of these, or a law that is not known to be rotated into itself.
    """
    options = dict(block.options)
    if block.block is blocks.Dense:
        return (_affine(block, path),)
    if block.block is blocks.Chain:
        parts = {name: part for name, part in block.options if isinstance(part, Spec)}
        return tuple(
            node for name, part in parts.items() for node in plan_of(_as_deterministic(part, block), f"{path}{name}/")
        )
    if block.block is blocks.Residual:
        inside = options.get("branch", block.arguments[0] if block.arguments else None)
        around = options.get("shortcut")
        branch = plan_of(_as_deterministic(inside, block), f"{path}branch/")  # type: ignore[arg-type]
        shortcut = plan_of(_as_deterministic(around, block), f"{path}shortcut/") if isinstance(around, Spec) else None
        return (SkipNode(path, branch, shortcut, bool(options.get("gate"))),)
    if any(leaf.ndim > 1 for leaf in jax.tree.leaves(jax.eval_shape(lambda: draw(block, jax.random.key(0))))):
        raise ValueError(
            "weights='implicit' takes networks whose kernels are those of vgjax.dense, in chains and skip connections, "
            f"got {block.block.__name__}; {REMEDY}"
        )
    return (PartNode(path, block),)


def _affine(block: Spec, path: str) -> AffineNode:
    options = dict(block.options)
    sizes = dict(zip(("fan_in", "fan_out"), block.arguments, strict=False)) | options
    laws = {name: options.get(name, "gaussian") for name in ("kernel_init", "bias_init")}
    for name, allowed in (("kernel_init", LAWS), ("bias_init", tuple(initializers.BIAS_INITS))):
        if laws[name] not in allowed:
            told = laws[name] if isinstance(laws[name], str) else "a law of its own"
            raise ValueError(f"weights='implicit' takes {name} {' or '.join(allowed)}, got {told}; {REMEDY}")
    around = {name: options[name] for name in ("activation", "before", "after") if options.get(name) is not None}
    for part in (around.get("before"), around.get("after")):
        if isinstance(part, Spec) and not all(isinstance(node, PartNode) for node in plan_of(part)):
            raise ValueError(
                f"weights='implicit' takes layers with no kernel around their activation, got {part.block.__name__}; "
                f"{REMEDY}"
            )
    activity = _as_deterministic(spec(Activity, **around), block)
    kernel = Kernel(str(laws["kernel_init"]), int(sizes["fan_in"]), int(sizes["fan_out"]))  # type: ignore[call-overload]
    names: tuple[str, str] = options.get("names", ("sigma_w", "sigma_b"))  # type: ignore[assignment]
    return AffineNode(path, activity, kernel, str(laws["bias_init"]), names)


def _as_deterministic(part: Spec, whole: Spec) -> Spec:
    """A part whose noise is off where that of the whole is."""
    return replace(part, deterministic=True) if whole.deterministic else part


@functools.cache
def check_network(network: Network) -> None:
    """Raise ValueError unless every kernel of a network is one that need not be drawn."""
    for shape in state_shapes(network):
        if len(shape) != 1:
            raise ValueError(f"weights='implicit' takes networks whose states are vectors, got {network!r}; {REMEDY}")
    for word, found in (
        ("share their parameters", any(stage.tied for stage in network.stages)),
        ("read the input layer by layer", network.driven),
        ("are all read by the head", network.every_step),
    ):
        if found:
            raise ValueError(f"weights='implicit' takes no layers that {word}, got {network!r}; {REMEDY}")
    for block in (network.stem, *(stage.spec for stage in network.stages), network.head):
        if block is not None:
            plan_of(block)
