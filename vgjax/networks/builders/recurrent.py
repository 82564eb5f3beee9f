"""Recurrent networks: depth is time, all steps share one draw."""

from flax import nnx
from jax.typing import DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.activations import Activation
from vgjax.blocks import spec
from vgjax.checks import known, positive_integer
from vgjax.networks.builders.parts import (
    Phi,
    drawn_as,
)
from vgjax.networks.network import Network, Stage


def rnn(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    activation: Phi = "tanh",
    cell: str = "simple",
    every_step: bool = False,
    kernel_init: str = "gaussian",
    input_kernel_init: str = "gaussian",
    bias_init: str = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A recurrent network: ``h_{t+1} = phi(W h_t + V x_t + b)``, h_0 = 0; depth is time, all steps share one draw.

    Scales: ``sigma_w`` for W, ``sigma_v`` for V, ``sigma_b`` for b.

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
        kernel_init, input_kernel_init: unit-gain laws of W and V: gaussian, truncated, uniform, orthogonal, identity.
        bias_init, dtype: as for `mlp`.

    Raises:
        ValueError: a size below 1, an unknown name, or a minimal cell whose inputs are not as wide as its state.
    """
    if known("cell", cell, ("simple", "minimal")) == "minimal":
        if inputs != width:
            raise ValueError(f"inputs must equal the width {width} for a minimal cell, got {inputs}")
        return _recurrent(
            blocks.MinimalCell,
            width,
            depth,
            inputs,
            outputs,
            every_step,
            kernel_init,
            input_kernel_init,
            bias_init,
            dtype,
        )
    phi = activations.get(activation)
    return _recurrent(
        blocks.RNNCell, width, depth, inputs, outputs, every_step, kernel_init, input_kernel_init, bias_init, dtype, phi
    )


def lstm(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    kernel_init: str = "gaussian",
    input_kernel_init: str = "gaussian",
    bias_init: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A long short-term memory (`vgjax.blocks.LSTMCell`): the state is (h, c), shape ``(2, width)``.

    Scales: those of `rnn`, and ``forget_bias`` (1; may be negative), which is added to the forget gate.

    Args:
        width, depth, inputs, outputs, every_step, law, input_kernel_init, bias_init, dtype: as for `rnn`.
    """
    return _recurrent(
        blocks.LSTMCell, width, depth, inputs, outputs, every_step, kernel_init, input_kernel_init, bias_init, dtype
    )


def gru(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    kernel_init: str = "gaussian",
    input_kernel_init: str = "gaussian",
    bias_init: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A gated recurrent unit (`vgjax.blocks.GRUCell`).

    Scales: those of `rnn`, and ``forget_bias`` (0; may be negative), which is added to the update gate: large, it keeps
    the state.

    Args:
        width, depth, inputs, outputs, every_step, law, input_kernel_init, bias_init, dtype: as for `rnn`.
    """
    return _recurrent(
        blocks.GRUCell, width, depth, inputs, outputs, every_step, kernel_init, input_kernel_init, bias_init, dtype
    )


def _recurrent(
    cell: type[nnx.Module],
    width: int,
    depth: int,
    inputs: int,
    outputs: int,
    every_step: bool,
    kernel_init: str,
    input_kernel_init: str,
    bias_init: str,
    dtype: DTypeLike,
    phi: Activation | None = None,
) -> Network:
    width, depth = positive_integer("width", width), positive_integer("depth", depth)
    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)
    drawn = drawn_as(kernel_init, bias_init, dtype)
    initializers.kernel_initializer(input_kernel_init)
    about = {"activation": phi} if phi else {}
    shape = (2, width) if cell is blocks.LSTMCell else (width,)
    read = {"before": spec(blocks.Part, 0)} if cell is blocks.LSTMCell else {}
    head = {"activation": activations.get("linear"), "bias_init": "zero", "dtype": drawn["dtype"], **read}
    return Network(
        stem=spec(blocks.Start, shape),
        stages=(
            Stage(
                spec(cell, width, inputs, input_kernel_init=input_kernel_init, **drawn, **about),
                depth,
                tied=True,
                fed=True,
            ),
        ),
        head=spec(blocks.Dense, width, outputs, **head),
        input_shape=(depth, inputs),
        every_step=every_step,
    )
