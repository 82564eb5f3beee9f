"""Spiking recurrent networks."""

from jax.typing import DTypeLike

from vgjax import blocks
from vgjax.blocks import spec
from vgjax.blocks.protocol import block_info
from vgjax.checks import kinds, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import dense, dtype_name
from vgjax.networks.builders.recipes import HEAD
from vgjax.networks.network import Network, Stage


@kinds
def spiking(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    surrogate: str = "fast_sigmoid",
    steepness: float = 25.0,
    threshold: float = 1.0,
    every_step: bool = False,
    kernel_init: Law = "gaussian",
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A recurrent network of leaky integrate-and-fire units (`vgjax.blocks.LIFCell`): depth is time; the head reads
    the membrane potentials.

    Scales: those of `vgjax.rnn`, and ``decay`` (.9), what is left of a potential after a step.

    Args:
        width: units.
        depth: T, the number of steps.
        inputs: size of the input at one step; a network's input has shape ``(depth, inputs)``.
        outputs: size of the output.
        surrogate, steepness, threshold: the spike and its slope on the way back: `vgjax.blocks.surrogate`.
        every_step, kernel_init, input_kernel_init, bias_init, dtype: as for `vgjax.rnn`.

    Raises:
        ValueError: a size below 1, an unknown name, a steepness that is not positive.

    Source: Neftci, Mostafa and Zenke 2019, "Surrogate gradient learning in spiking neural networks".
    """
    width, depth, inputs, outputs = (
        positive_integer(name, size)
        for name, size in (("width", width), ("depth", depth), ("inputs", inputs), ("outputs", outputs))
    )
    draws = {"kernel_init": kernel_init, "input_kernel_init": input_kernel_init, "bias_init": bias_init}
    spikes = {"surrogate": surrogate, "steepness": steepness, "threshold": threshold}
    cell = spec(blocks.LIFCell, width, inputs, **spikes, **draws, dtype=dtype_name(dtype))
    block_info(cell)  # built once, so that a law or a number that does not fit is told here
    return Network(
        stem=spec(blocks.Start, (width,)),
        stages=(Stage(cell, depth, tied=True, driven=True, read=every_step),),
        head=dense(width, outputs, dtype=dtype, **HEAD),
        input_shape=(depth, inputs),
        name="spiking network",
    )
