"""The families of networks that theory is laid over, and the one call that does it."""

from typing import Any

import numpy as np

from vgjax.blocks.told import (
    DepthAverageArguments,
    GraphArguments,
    LayerArguments,
    RecurrenceArguments,
    StreamArguments,
    TheoryArguments,
    TransformerArguments,
)
from vgjax.checks import ArrayLike, kinds, known, short
from vgjax.comparison.graphs import GRAPHS
from vgjax.comparison.layers import LAYERS
from vgjax.comparison.points import Family, Points, Swept
from vgjax.comparison.recurrences import RECURRENCES
from vgjax.comparison.streams import DEPTH_AVERAGES, HYPER_CONNECTIONS
from vgjax.comparison.transformers import TRANSFORMERS
from vgjax.comparison.verdict import Comparison
from vgjax.ensembles.result import Result, check_complete

VARIABLES = ("log_gain", "log_gradient", "log_mean_square", "log_one_minus_c")
"""What theory predicts, of one family or another."""

PREDICTORS: dict[type[TheoryArguments], Family] = {
    LayerArguments: LAYERS,
    TransformerArguments: TRANSFORMERS,
    StreamArguments: HYPER_CONNECTIONS,
    DepthAverageArguments: DEPTH_AVERAGES,
    GraphArguments: GRAPHS,
    RecurrenceArguments: RECURRENCES,
}
"""By the class of what a network tells of itself."""


@kinds
def compare(
    result: Result,
    variable: str | None = None,
    *,
    correlation: float | None = None,
    covariance: ArrayLike | None = None,
    input_variance: float | None = None,
) -> Comparison:
    """What was measured beside what theory predicts at the same widths, draws and scales, from the first layer on.

    Theory starts from the mean square of h^0 that was measured (gradients: and from the last layer's gradient; a
    normalized stack: from its first layer on), from what is said of the input here, and knows nothing else of the
    measurement. What it has, and of which average:

    - plain stacks: gains and gradients, mean and deviation of the logarithm at that width (`theory.band`); states and
      correlations, at infinite width;
    - stacks with dropout, with residual branches, or with layer, RMS or batch norm around phi: gains, gradients and
      states (of batch norm gains and gradients alone), with dropout correlations, all at infinite width;
    - transformers of full attention without rotation: gains and states, at infinite width;
    - hyper-connections around a layer without bias, phi homogeneous: gains and states, mean squares;
    - averages over depth around such a layer: states, all that is remembered, mean squares;
    - graph convolutions, phi linear or relu: gains and states, mean squares;
    - linear recurrences (LRU, S4D, Mamba, RG-LRU, minGRU, minLSTM, the delta rule): gains, and gradients with one
      output, mean squares.

    Theory of mean squares has E |J u|^2 / |u|^2: beside it stands ln of the root mean square over the draws (annealed),
    not the mean of logarithms (quenched), which lies below. It is exact at every width where phi is linear and nothing
    is normalized, so for recurrences too. Gains at infinite width are compared with the mean of logarithms. States and
    1 - c are always ln of their mean. What holds at infinite width, with relu too, differs from what was measured by
    O(1 / width) beyond the standard error.

    Recurrences begin at 0: of their states theory has none. Gates of theirs that read the input are those of white
    inputs, orthogonal from step to step, or independent in many dimensions.

    Args:
        result: a sweep of `gains` with one probe, of `gradients`, or of `correlations`, of a network that theory knows.
        variable: ``"log_gain"``, ``"log_gradient"``, ``"log_mean_square"`` or ``"log_one_minus_c"``; left out, the
            first of them that was measured and that theory has (of correlations the last).
        correlation: of two tokens of h^0, which theory of transformers starts from (`vgjax.measure.token_correlation`).
        covariance: of the nodes of h^0, up to a factor, shape ``(nodes, nodes)``, which theory of graphs starts from:
            its states, and its gains with ReLU.
        input_variance: mean square of the numbers of a white input, where the factors of a recurrence read it.

    Returns:
        `Comparison`.

    Raises:
        ValueError: a network, a variable or axes that theory does not cover, what must be said of the input and is not
            or is said of another family, or a result with missing points.
    """
    check_complete("compare", result)
    measured = [name for name in VARIABLES if name in result.arrays]
    if not measured or "first_inexact_layer" not in result.arrays:
        raise ValueError(f"compare needs gains, gradients or correlations, got {result.measure}")
    if variable is not None:
        known("variable", variable, measured)
    told = result.network.theory_arguments
    if told is None:
        raise ValueError(f"compare needs a network that theory knows, got {result.network!r}")
    given = {"correlation": correlation, "covariance": covariance, "input_variance": input_variance}
    points = _points(result, PREDICTORS[type(told)], told, _variable(result, variable, measured, told), given)
    found = PREDICTORS[type(told)].predict(points)
    whole = np.isfinite(found.measured) & (result.first_inexact_layer.min(axis=0) > result.depth)[..., None]
    deviation = np.where(whole, found.deviation, np.nan)
    about = result.seeds, found.critical, told.label or result.network.name, float(1 - whole.mean())
    return Comparison(points.variable, result.axes, found.measured, found.predicted, deviation, *about)


def _variable(result: Result, variable: str | None, measured: list[str], told: TheoryArguments) -> str:
    """What is compared: what was asked for, or the first that there is on both sides."""
    family = PREDICTORS[type(told)]
    if variable is None:
        both = [name for name in measured if name in family.variables] or measured
        variable = both[-1 if result.measure == "correlations" else 0]
    if variable not in family.variables:
        raise ValueError(f"compare takes {' or '.join(family.variables)} of {family.of}, got {variable}")
    probes = result.provenance.get("options", {}).get("probes", 1)
    if variable == "log_gain" and probes != 1:
        raise ValueError(f"compare needs one probe a draw, got {probes}")
    return variable


def _points(result: Result, family: Family, told: TheoryArguments, variable: str, given: dict[str, Any]) -> Points:
    """A sweep over nothing that theory does not know."""
    for name, value in given.items():
        if value is not None and name not in family.takes:
            raise ValueError(f"{name} must be left out of a comparison of {family.of}, got {short(value)}")
    if "example" in result.sizes:
        raise ValueError(f"compare takes one input a draw, got a batch of {result.sizes['example']}")
    names = family.names(told)
    others = [name for name in result.axes if name not in names]
    if others:
        raise ValueError(f"compare takes sweeps over {', '.join(names)}, got {', '.join(others)}")
    swept = {name: Swept(i, values) for i, (name, values) in enumerate(result.axes.items())}
    scales = {n: v for n, v in result.network.completed({**result.fixed, **swept}).items() if n in names}
    for name, value in scales.items():
        if not family.by_layer and not isinstance(value, Swept) and np.ndim(value):
            raise ValueError(f"compare takes one {name} for all layers, got one a layer")
    return Points(result, variable, scales, given)
