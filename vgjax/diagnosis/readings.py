"""What a diagnosis reads off a model, as plain numbers: paths of states, the weights between them, every parameter.

Logarithms are natural, taken on the host in float64; -inf is a true zero, NaN what does not exist or means nothing.
"""

from dataclasses import dataclass
from typing import Literal

from vgjax.values import by_content

NAN = float("nan")

Kind = Literal["kernel", "activation", "norm", "branch", "recurrence", "scale", "pooling", "other"]
"""What lies between two states.

A map with weights; a nonlinearity, by entry or a softmax; entries centred or divided by means of their own; several
ways with weights or products of states in them (a residual block with its skip, attention, a gate); a loop over time; a
factor that is no state (a constant, a weight, a mask of dropout); sums, means or the largest of entries; and slices,
branchings, what has a rule of its own.
"""


@by_content
@dataclass(frozen=True)
class Row:
    """One state that the gradient passes, or one map with weights on the way to it.

    Attributes:
        name: where it comes from: the path of its largest parameter (``encoder/layers/7/kernel``), else the module's
            scope, else the operation.
        where: ``file.py:line (function)`` of the user's own code; empty if there is none.
        operation: the primitive that made it (``dot_general``, ``add``, ``scan``).
        shape, dtype: of the array.
        step: of the loop it is carried by; None outside loops.
        is_layer: whether weights lie between it and the state before.
        log_rms: ln of the root mean square of its entries.
        log_cotangent: ln ||dL/dh||, of the whole batch.
        log_parameter_gradient: ln ||dL/dW|| of the parameter it is named after; NaN if it is named after none.
        zeros: share of exact zeros in the activation that follows; NaN if none does.
        saturated: share of units whose activation passes less than a twentieth of its steepest slope on; NaN as above.
        kinds: of what lies on the way to it from the state before, in order (`Kind`); empty where that is not told
            apart.
        log_cuts: ln of the norm of the gradient between those, one fewer.
        sites: of a state, the maps with weights on the way to it.
    """

    name: str
    where: str = ""
    operation: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    step: int | None = None
    is_layer: bool = True
    log_rms: float = NAN
    log_cotangent: float = NAN
    log_parameter_gradient: float = NAN
    zeros: float = NAN
    saturated: float = NAN
    kinds: tuple[Kind, ...] = ()
    log_cuts: tuple[float, ...] = ()
    sites: "tuple[Row, ...]" = ()


@by_content
@dataclass(frozen=True)
class Path:
    """States in the order of the computation, input first.

    Attributes:
        name: "depth", or of a recurrence its place in the code.
        kind: along layers or along the steps of a recurrence.
        rows: the states; steps of a loop are rows of their own.
        all_gradient: whether every gradient passes every one of them (cuts); False for the longest of several ways
            around each other (U-Net, several trunks).
    """

    name: str
    kind: Literal["depth", "time"]
    rows: tuple[Row, ...]
    all_gradient: bool = True


@by_content
@dataclass(frozen=True)
class Frontier:
    """The gradient that is alive after one part of the computation.

    Attributes:
        where: the part, as in `Row`.
        log_cotangent: ln of the norm of the gradient by all states that are alive there.
        log_smallest: ln of the smallest part of it.
    """

    where: str
    log_cotangent: float
    log_smallest: float


@by_content
@dataclass(frozen=True)
class Readings:
    """All that one forward and one backward pass say about a model.

    Attributes:
        paths: the main path first, then recurrences.
        sites: every map with weights, on the main path or not, in the order of the computation.
        parameter_gradients: ln ||dL/dtheta|| by the parameter's path.
        zero_parameters: parameters all of whose entries are exactly 0.
        opaque: (what, ``file:line``) that is differentiated by its own rule and not looked into.
        constants: (shape, ``file:line``) of large arrays that the function closes over: JAX gives them no gradient.
        frontier: of a model without cuts; empty otherwise.
        loss: its value; NaN without a loss.
        cotangent: what was pulled back: the loss's gradient, or random vectors at the output.
        first_inexact: the first state, by name, past the float range that cannot be computed; empty if all are right.
    """

    paths: tuple[Path, ...]
    sites: tuple[Row, ...]
    parameter_gradients: dict[str, float]
    zero_parameters: tuple[str, ...] = ()
    opaque: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[tuple[int, ...], str], ...] = ()
    frontier: tuple[Frontier, ...] = ()
    loss: float = NAN
    cotangent: Literal["loss", "random"] = "loss"
    first_inexact: str = ""
