"""What an optimizer moves: ordinary parameters, the trainable ones among them, and noise drawn anew."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vgjax.blocks import Spec
from vgjax.blocks.protocol import block_info
from vgjax.checks import kinds
from vgjax.initializers import Scales
from vgjax.networks.layer import Layer, Tree
from vgjax.networks.layers import bind
from vgjax.networks.network import OF_HEAD, check_scales
from vgjax.networks.parameters import Parameters, without_shared


@kinds
def absorb_scales(parameters: Parameters, scales: Scales) -> tuple[Parameters, Scales]:
    """The ordinary Flax parameters that a user's optimizer would see, W = sigma_w Z and b = sigma_b z, and the scales
    that are left.

    Z is the stored draw at unit gain, so W has standard deviation sigma_w / sqrt(fan_in). Both together are the same
    network: ``forward(*absorb_scales(params, scales), x)``. Of the scales those that multiply parameters then stand at
    1; the others (skip, temperature, dropout) are what they were. The head takes ``sigma_out``.

    Args:
        parameters: draws at unit gain (`init`).
        scales: numbers, or one value per layer.

    Returns:
        Parameters of the same network, and every scale that it declares, shape ``(depth,)`` or ``()``.

    Raises:
        ValueError: unknown scales, or streamed parameters, which are never stored.
    """
    check_scales(parameters.network, scales)
    if parameters.streamed:
        raise ValueError("parameters must be stored to take scales; draw them with init(..., stream=False)")
    return absorbed(parameters, scales)


def absorbed(parameters: Parameters, scales: Scales) -> tuple[Parameters, Scales]:
    """`absorb_scales`, unchecked: for use inside compiled programs."""
    layers, network = bind(parameters, scales, None), parameters.network
    stem, head = (end.absorb_scales() if end else None for end in (layers.stem, layers.head))
    left_of_ends = dict(stem.scales) if stem else {}
    left_of_ends |= {OF_HEAD: head.scales[OF_HEAD]} if head and OF_HEAD in head.scales else {}

    def visit(layer: Layer, _: None, __: None) -> tuple[None, tuple[Tree, dict[str, Array]]]:
        ordinary, read = layer.absorb_scales(), block_info(layer.spec).scales
        # A scale that this block does not read may be the stem's or the head's, which have absorbed it.
        left = {name: s if name in read else left_of_ends.get(name, s) for name, s in ordinary.scales.items()}
        return None, (ordinary.parameters, left)

    _, reports = layers.scan(None, visit)
    kept = (
        jax.tree.map(lambda a: a[0], tree) if stage.tied else tree
        for stage, (tree, _) in zip(network.stages, reports, strict=True)
    )
    left = {name: jnp.concatenate([scales[name] for _, scales in reports]) for name in reports[0][1]}
    if any(stage.tied for stage in network.stages):  # what multiplies shared parameters is one number
        declared = network.scales
        left = {name: value[0] if declared[name].kind == "parameter" else value for name, value in left.items()}
    ends: dict[str, Any] = {
        "stem": stem.parameters if stem else {},
        "head": without_shared(network, head.parameters) if head else {},
    }
    return replace(parameters, **ends, stages=tuple(kept)), Scales._of(left)


def trainable(parameters: Parameters) -> dict[str, Array]:
    """The `nnx.Param` leaves of stored parameters, by path: "stem/kernel", "blocks/0/kernel" (of the first stage,
    stacked by layer unless it is tied), "head/bias"."""
    return {
        f"{where}/{path}": leaf
        for where, (spec, tree) in _subtrees(parameters).items()
        for path, leaf in Layer(spec, tree, Scales()).trainable().items()
    }


def with_trainable(parameters: Parameters, leaves: dict[str, Array]) -> Parameters:
    """The same parameters with the leaves of `trainable` replaced."""

    def put(where: str, spec: Spec, tree: Tree) -> Tree:
        mine = {path.removeprefix(f"{where}/"): leaf for path, leaf in leaves.items() if path.startswith(f"{where}/")}
        return Layer(spec, tree, Scales()).with_parameters(mine).parameters

    return _assemble(parameters, {where: put(where, *at) for where, at in _subtrees(parameters).items()})


def without_noise(parameters: Parameters) -> Parameters:
    """The same parameters, of the network with all dropout off."""

    def quiet(spec: Spec) -> Spec:
        return replace(spec, deterministic=True) if block_info(spec).noisy else spec

    network = parameters.network
    stages = tuple(replace(stage, spec=quiet(stage.spec)) for stage in network.stages)
    stem, head = (spec and quiet(spec) for spec in (network.stem, network.head))
    return replace(parameters, network=replace(network, stem=stem, stages=stages, head=head))


def redrawn(parameters: Parameters, key: Array) -> Parameters:
    """Stored parameters with the noise of every block (dropout) drawn anew; those of a network without any as they
    are."""

    def put(i: int, where: str, spec: Spec, tree: Tree) -> Tree:
        if not block_info(spec).noisy:
            return tree
        here = jax.random.fold_in(key, i)
        draw_one = lambda tree, key: Layer(spec, tree, Scales()).redrawn(key).parameters  # noqa: E731
        # A path "blocks/1" is of the second stage, whose layers have an axis in front; "stem" and "head" have none.
        stage = parameters.network.stages[int(where.split("/")[1])] if "/" in where else None
        if stage is None or stage.tied:
            return draw_one(tree, here)
        # Noise is a few numbers a layer: unlike kernels (`init`), all at once.
        return jax.vmap(draw_one)(tree, jax.random.split(here, stage.depth))

    return _assemble(parameters, {at[0]: put(i, at[0], *at[1]) for i, at in enumerate(_subtrees(parameters).items())})


def _subtrees(parameters: Parameters) -> dict[str, tuple[Spec, Any]]:
    """Where parameters lie: the stem, every stage, the head; with the spec of their block."""
    network = parameters.network
    subtrees = {f"blocks/{i}": (s.spec, parameters.stages[i]) for i, s in enumerate(network.stages)}
    ends = {"stem": (network.stem, parameters.stem), "head": (network.head, parameters.head)}
    return subtrees | {name: (spec, tree) for name, (spec, tree) in ends.items() if spec is not None}


def _assemble(parameters: Parameters, tree: dict[str, Tree]) -> Parameters:
    stages = tuple(tree[f"blocks/{i}"] for i in range(len(parameters.stages)))
    return replace(parameters, stem=tree.get("stem", {}), stages=stages, head=tree.get("head", {}))
