"""Recurrences that scale: linear in the state, so that time can be long; depth is time, all steps share one draw.

The head reads the whole state: of a complex one both parts, of a matrix all entries.
"""

import math
from typing import Any

from jax.typing import DTypeLike

from vgjax import blocks
from vgjax.checks import kinds, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.recurrent import recurrence
from vgjax.networks.network import Network


@kinds
def diagonal_rnn(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    law: str = "ring",
    radii: tuple[float, float] = (0.0, 1.0),
    max_phase: float = 2 * math.pi,
    time_steps: tuple[float, float] = (1e-3, 0.1),
    every_step: bool = False,
    input_kernel_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A diagonal linear recurrence, ``h' = lambda h + gamma B x`` (`vgjax.blocks.DiagonalCell`): LRU, S4D-Lin and S5.

    The state is a complex number a unit, shape ``(2, width)``. Scales: ``sigma_v`` for B, ``sigma_out``.

    Args:
        width: complex units.
        depth: T, the number of steps.
        inputs: size of the input at one step; a network's input has shape ``(depth, inputs)``.
        outputs: size of the output.
        law: of lambda: ``"ring"``, |lambda|^2 uniform between the squares of the radii (LRU); ``"s4d"``, exp(dt A) with
            A = -1/2 + i pi n and dt log-uniform between the time steps (S4D-Lin, S5).
        radii, max_phase: of the ring; radians.
        time_steps: of ``"s4d"``.
        every_step: as for `vgjax.rnn`.
        input_kernel_init, dtype: as for `vgjax.rnn`.

    Raises:
        ValueError: a size below 1, an unknown law, radii outside of 0 to 1, time steps that are not positive.
    """
    ring: dict[str, Any] = {"radii": radii, "max_phase": max_phase}
    return recurrence(
        blocks.DiagonalCell,
        (width, depth, inputs, outputs),
        every_step,
        (2, width),
        law=law,
        **(ring if law == "ring" else {"time_steps": time_steps}),
        input_kernel_init=input_kernel_init,
        dtype=dtype,
    )


@kinds
def mamba(
    *,
    width: int,
    depth: int,
    outputs: int = 1,
    states: int = 16,
    heads: int | None = None,
    time_steps: tuple[float, float] = (1e-3, 0.1),
    every_step: bool = False,
    input_kernel_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """The selective scan of Mamba, ``h' = exp(-dt A) h + dt B x`` with dt and B of the input
    (`vgjax.blocks.SelectiveCell`); with heads, of Mamba-2.

    The state has shape ``(states, width)``. Scales: ``sigma_dt`` for the kernel of dt, ``sigma_v`` for that of B,
    ``sigma_out``.

    Args:
        width: channels, and size of the input at one step.
        depth, outputs, every_step: as for `diagonal_rnn`.
        states: numbers that every channel keeps.
        heads: None: A = 1, 2, ..., ``states``, a dt a channel; else into how many heads the channels are cut, each with
            one dt and one A uniform between 1 and 16.
        time_steps: between which dt is log-uniform at the input 0.
        input_kernel_init: a name or a law.
        dtype: as for `vgjax.rnn`.

    Raises:
        ValueError: a size below 1, heads that do not divide the width, time steps that are not positive.
    """
    return recurrence(
        blocks.SelectiveCell,
        (width, depth, None, outputs),
        every_step,
        (positive_integer("states", states), width),
        states=states,
        heads=heads,
        time_steps=time_steps,
        input_kernel_init=input_kernel_init,
        dtype=dtype,
    )


@kinds
def min_gru(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A minGRU, ``h' = (1 - z) h + z n`` with gates of the input alone (`vgjax.blocks.MinGRUCell`).

    Scales: ``sigma_v``, ``sigma_b``, ``forget_bias`` (0; large, it keeps the state), ``sigma_out``.

    Args:
        width, depth, inputs, outputs, every_step, input_kernel_init, bias_init, dtype: as for `vgjax.rnn`.
    """
    return recurrence(
        blocks.MinGRUCell,
        (width, depth, inputs, outputs),
        every_step,
        input_kernel_init=input_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
    )


@kinds
def min_lstm(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    every_step: bool = False,
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A minLSTM, ``h' = (f h + i n) / (f + i)`` with gates of the input alone (`vgjax.blocks.MinLSTMCell`).

    Scales: those of `min_gru`.

    Args:
        width, depth, inputs, outputs, every_step, input_kernel_init, bias_init, dtype: as for `vgjax.rnn`.
    """
    return recurrence(
        blocks.MinLSTMCell,
        (width, depth, inputs, outputs),
        every_step,
        input_kernel_init=input_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
    )


@kinds
def rg_lru(
    *,
    width: int,
    depth: int,
    outputs: int = 1,
    radii: tuple[float, float] = (0.9, 0.999),
    sharpness: float = 8.0,
    every_step: bool = False,
    input_kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """The real-gated linear recurrent unit of Griffin (`vgjax.blocks.RGLRUCell`).

    Scales: ``sigma_v``, ``sigma_b``, ``sigma_out``.

    Args:
        width: units, and size of the input at one step.
        depth, outputs, every_step: as for `diagonal_rnn`.
        radii: of a, whose square is drawn uniform between theirs.
        sharpness: c, in a^(c r).
        input_kernel_init, bias_init, dtype: as for `vgjax.rnn`.

    Raises:
        ValueError: a size below 1, radii outside of 0 to 1, a sharpness that is not positive.
    """
    return recurrence(
        blocks.RGLRUCell,
        (width, depth, None, outputs),
        every_step,
        radii=radii,
        sharpness=sharpness,
        input_kernel_init=input_kernel_init,
        bias_init=bias_init,
        dtype=dtype,
    )


@kinds
def delta_net(
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    decay: str = "none",
    erase: bool = True,
    every_step: bool = False,
    input_kernel_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """The delta rule, ``S' = S D (1 - beta k k^T) + beta v k^T`` with unit keys (`vgjax.blocks.MatrixCell`): DeltaNet;
    gated DeltaNet, linear attention and what lies between by ``decay`` and ``erase``.

    The state has shape ``(width, width)``. Scales: ``sigma_v`` for values, ``sigma_gate``, ``rate`` (1; the most that
    beta can be), with a decay ``forget_bias`` (0), ``sigma_out``.

    Args:
        width: size of a key and of a value.
        depth, inputs, outputs, every_step: as for `diagonal_rnn`.
        decay: D: ``"none"``, ``"scalar"`` or ``"channel"``.
        erase: whether what a key holds is taken out before it is written.
        input_kernel_init: a name or a law.
        dtype: as for `vgjax.rnn`.

    Raises:
        ValueError: a size below 1, an unknown decay.
    """
    return recurrence(
        blocks.MatrixCell,
        (width, depth, inputs, outputs),
        every_step,
        (width, width),
        decay=decay,
        erase=erase,
        input_kernel_init=input_kernel_init,
        dtype=dtype,
    )
