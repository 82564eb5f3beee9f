"""Recurrent networks: depth is time, all steps share one draw."""

import math
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.blocks import spec
from vgjax.blocks.protocol import block_info
from vgjax.checks import kinds, known, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Phi, dense, dtype_name
from vgjax.networks.builders.recipes import HEAD
from vgjax.networks.network import Network, Stage


@kinds
def rnn(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    activation: Phi = "tanh",
    cell: str = "simple",
    every_step: bool = False,
    kernel_init: Law = "gaussian",
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A recurrent network: ``h_{t+1} = phi(W h_t + V x_t + b)``, h_0 = 0; depth is time, all steps share one draw.

    Scales: ``sigma_w`` for W, ``sigma_v`` for V, ``sigma_b`` for b, ``sigma_out`` for the head's kernel.

    Args:
        width: units of the hidden state.
        depth: T, the number of steps.
        inputs: size of the input at one step; a network's input has shape ``(depth, inputs)``.
        outputs: size of the output, W h_T.
        activation: phi.
        cell: ``"simple"``, or ``"minimal"``: h' = u h + (1 - u) x, u = sigmoid(W h + V x + b + forget_bias), with
            inputs as wide as the state.
        every_step: the head reads every h_1 ... h_T, the output has shape ``(depth, outputs)``, and a loss is summed
            over steps.
        kernel_init, input_kernel_init: how W and V are drawn, as for `vgjax.dense`: of an LSTM and a GRU each gate by
            itself; an array holds them side by side. The head is Gaussian.
        bias_init, dtype: as for `vgjax.dense`.

    Raises:
        ValueError: a size below 1, an unknown name, or a minimal cell whose inputs are not as wide as its state.
    """
    if known("cell", cell, ("simple", "minimal")) == "minimal" and inputs != width:
        raise ValueError(f"inputs must equal the width {width} for a minimal cell, got {inputs}")
    phi: dict[str, Any] = {"activation": activations.get(activation)} if cell == "simple" else {}
    return recurrence(
        blocks.RNNCell if cell == "simple" else blocks.MinimalCell,
        (width, depth, inputs, outputs),
        every_step,
        **phi,
        kernel_init=kernel_init,
        input_kernel_init=input_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
    )


@kinds
def lstm(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    kernel_init: Law = "gaussian",
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A long short-term memory (`vgjax.blocks.LSTMCell`): the state is (h, c), shape ``(2, width)``.

    Scales: those of `rnn`, and ``forget_bias`` (1; may be negative), which is added to the forget gate.

    Args:
        width, depth, inputs, outputs, every_step, kernel_init, input_kernel_init, bias_init, dtype: as for `rnn`.
    """
    return recurrence(
        blocks.LSTMCell,
        (width, depth, inputs, outputs),
        every_step,
        kernel_init=kernel_init,
        input_kernel_init=input_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
    )


@kinds
def gru(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    kernel_init: Law = "gaussian",
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A gated recurrent unit (`vgjax.blocks.GRUCell`).

    Scales: those of `rnn`, and ``forget_bias`` (0; may be negative), which is added to the update gate: large, it keeps
    the state.

    Args:
        width, depth, inputs, outputs, every_step, kernel_init, input_kernel_init, bias_init, dtype: as for `rnn`.
    """
    return recurrence(
        blocks.GRUCell,
        (width, depth, inputs, outputs),
        every_step,
        kernel_init=kernel_init,
        input_kernel_init=input_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
    )


def recurrence(
    cell: type[nnx.Module],
    sizes: tuple[int, int, int | None, int],
    every_step: bool,
    state: tuple[int, ...] | None = None,
    **options: Any,
) -> Network:
    """A network of one cell over time, from the state 0.

    Args:
        cell: of a width and a size of inputs, or of a width alone.
        sizes: width, depth, inputs, outputs; inputs None: as wide as the state.
        every_step: whether the head reads every state.
        state: its shape, all of which the head reads; None: a vector, or the parts that the cell names, of which the
            head reads the first.
        **options: of the cell.
    """
    names = ("width", "depth", "inputs", "outputs")
    given = {name: positive_integer(name, size) for name, size in zip(names, sizes, strict=True) if size is not None}
    width, inputs = given["width"], given.get("inputs", given["width"])
    laws = {"kernel_init": initializers.KERNEL_INITS, "input_kernel_init": initializers.KERNEL_INITS}
    for name, known_laws in (laws | {"bias_init": initializers.BIAS_INITS}).items():
        if name in options:
            initializers.check_law(name, options[name], known_laws)
    options["dtype"] = dtype_name(options["dtype"])
    block = spec(cell, width, *([] if sizes[2] is None else [inputs]), **options)
    block_info(block)  # built once, so that a law or an array that does not fit is told here
    parts = getattr(cell, "parts", ())
    whole, first = spec(blocks.Flat), spec(blocks.Part, 0) if parts else None
    size, read = (width, first) if state is None else (math.prod(state), whole)
    state = state or ((len(parts), width) if parts else (width,))
    return Network(
        stem=spec(blocks.Start, state),
        stages=(Stage(block, given["depth"], tied=True, driven=True, read=every_step),),
        # Gaussian whatever the cell's kernels are: an identity would read single units.
        head=dense(size, given["outputs"], before=read, dtype=options["dtype"], **HEAD),
        input_shape=(given["depth"], inputs),
        name=cell.__name__.removesuffix("Cell").lower(),
    )
