"""Remedies: a network whose gradients vanish or explode, and what each remedy of the textbooks does to it.

Every remedy is a network with its scales and with what an optimizer would do to its first gradient: a case of a sweep,
measured like any other. One that does not help is seen not to help.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import data
from vgjax.checks import ArrayLike, RandomKey, kinds, known, positive_integer
from vgjax.data import Examples
from vgjax.ensembles.grid import Case
from vgjax.ensembles.measurement import Arrays, Measurement
from vgjax.ensembles.measurements import Gradients
from vgjax.ensembles.result import Result, check_complete
from vgjax.initializers import Scales
from vgjax.measure import losses, naive
from vgjax.measure.gradients import GradientFlow
from vgjax.networks.builders import branch, gru, lstm, mlp, norm, rnn
from vgjax.networks.calibration import check_unit_variance, unit_variance
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters
from vgjax.networks.trainable import absorbed

CLASSES = 10
_SEQUENCE_INPUTS = 8
_HE = math.sqrt(2)


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstSteps(Gradients):
    """`first_steps`."""

    learning_rate: float
    clip: float | None

    name: ClassVar[str] = "first_steps"
    dims: ClassVar[dict[str, tuple[str, ...]]] = {  # type: ignore[misc]
        name: () for name in ("log_ratio", "lost_layers", "log_first_step", "log_step")
    }

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """Of one example, or of a batch that is one state."""
        parameters, x, y, loss = self.resolved(drawn, inputs, single=True)
        flow = super().measure(drawn, scales, numbers, *inputs)
        lost = naive.of_batch(parameters, scales, x[None], y, loss, "float32")
        return self._read(flow, flow["log_gradient"], lost, absorbed(parameters, scales)[0])

    def over_examples(
        self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Of a batch: the root mean square over its examples, and the first step of their summed loss."""
        parameters, x, y, loss = self.resolved(drawn, inputs, single=False)
        flow, _ = super().over_examples(drawn, scales, numbers, *inputs)
        log_gradient = jax.nn.logsumexp(2 * flow["log_gradient"], axis=0) / 2
        lost = naive.of_batch(parameters, scales, x, y, loss, "float32")
        read = self._read(flow, log_gradient, lost, absorbed(parameters, scales)[0])
        return read, frozenset(read)

    def _read(self, flow: dict[str, Any], log_gradient: Array, lost: Array, ordinary: Parameters) -> dict[str, Array]:
        """Norms of gradients and weights; what an optimizer makes of them is read on the host."""
        first, every = _log_norms(GradientFlow(**flow), ordinary)
        return {
            "log_ratio": log_gradient[0] - log_gradient[-1],
            "lost_layers": jnp.mean(jnp.sum(lost.astype(log_gradient.dtype), axis=-1)),
            "first": jnp.stack(first),
            "every": jnp.stack(every),
        }

    def finish(self, arrays: Arrays, where: str) -> Arrays:
        """Steps from gradients and weights."""
        (first, first_weights), (every, weights) = (np.moveaxis(arrays.pop(name), -1, 0) for name in ("first", "every"))
        shrink = 0.0 if self.clip is None else np.minimum(0.0, math.log(self.clip) - every)
        rate = math.log(self.learning_rate) + shrink
        return {**arrays, "log_first_step": rate + first - first_weights, "log_step": rate + every - weights}

    def compiled_for(self) -> Measurement:
        """All learning rates and clippings share a program."""
        return replace(self, learning_rate=1.0, clip=None)


@kinds
def first_steps(
    learning_rate: float = 0.1, *, clip: float | None = None, loss: losses.Loss | None = None
) -> Measurement:
    """What depth does to the gradient, and the first step of gradient descent that is left of it.

    The sweep's inputs are x and y, best a batch (``leading="example"``). Variables, each one number a draw:
    ``log_ratio``: ln of ||dL/ds_0|| / ||dL/ds_L||, first layer against last (root mean square over the examples);
    ``lost_layers``: how many of the L + 1 layers plain float32 reads as 0 or not finite, a mean over the examples;
    ``log_first_step``: ln of ||learning rate x gradient|| / ||weights|| of the first layer's kernel (of a recurrence,
    what the first time step contributes to the kernel of the inputs); ``log_step``: the same of all parameters.

    Args:
        learning_rate: of plain gradient descent.
        clip: largest norm of the whole gradient that a step takes; None for no clipping.
        loss: as for `vgjax.gradient_flow`.

    Raises:
        ValueError: a rate or a clip that is not positive.
    """
    for name, value in (("learning_rate", learning_rate), ("clip", clip)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    return FirstSteps(losses.checked_loss(loss), float(learning_rate), clip)


def _log_norms(flow: GradientFlow, ordinary: Parameters) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """ln of the norms of gradient and weights: of the kernel that the inputs enter by, and of all parameters."""
    by_path = flow.log_parameter_gradient
    # Of what stem and head share the stem has the whole.
    twice = {f"head/{here}" for here, _ in ordinary.network.shared}
    whole = {path: log for path, log in {**by_path, **flow.log_tied_gradient}.items() if path not in twice}
    logs = jnp.concatenate([jnp.ravel(log) for log in whole.values()])
    every = jax.nn.logsumexp(2 * jnp.where(jnp.isnan(logs), -jnp.inf, logs)) / 2, _log_norm(ordinary)
    if "stem/kernel" in by_path:
        return (by_path["stem/kernel"], _log_norm(ordinary.stem["kernel"])), every
    if "input_kernel" in by_path:
        (cell,) = ordinary.stages
        return (by_path["input_kernel"][0], _log_norm(cell["input_kernel"])), every  # type: ignore[call-overload]
    nowhere = jnp.asarray(jnp.nan)  # an input that enters by no kernel of its own
    return (nowhere, nowhere), every


def _log_norm(tree: Any) -> Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.log(sum(jnp.sum(jnp.square(leaf)) for leaf in floats)) / 2


# --- a remedy as a case of a sweep ----------------------------------------------------------------------------------


@kinds
@dataclass(frozen=True)
class Remedy(Case):
    """A network, its scales, and how its first step of gradient descent would be taken.

    Attributes:
        network, scales: as for `Case`; its examples are a batch, or one state if it takes a batch as one.
        input_scale, target_scale: factors on inputs and (with squared error) on one-hot targets.
        loss: cross_entropy or squared_error.
        learning_rate, clip: as for `first_steps`.
        unit_variance: rescale the kernels layer by layer first (`vgjax.networks.lsuv`).
    """

    input_scale: float = 1.0
    target_scale: float = 1.0
    loss: str = "cross_entropy"
    learning_rate: float = 0.1
    clip: float | None = None
    unit_variance: bool = False

    def adapt(self, measure: Measurement) -> Measurement:
        """The measurement with this remedy's options, of its inputs and its draws."""
        options = {field.name for field in dataclasses.fields(measure)}  # type: ignore[arg-type]
        ours = {name: getattr(self, name) for name in ("loss", "learning_rate", "clip") if name in options}
        target_scale = self.target_scale if self.loss == "squared_error" else None
        return Remedied(replace(measure, **ours), self.input_scale, target_scale, self.unit_variance)  # type: ignore


@dataclass(frozen=True)
class Remedied(Measurement):
    """A measurement behind what a remedy does to inputs, targets and draws; all else is the measurement's own.

    Attributes:
        measured: the measurement.
        input_scale, unit_variance: as for `Remedy`.
        target_scale: of one-hot targets; None for labels.
    """

    measured: Measurement
    input_scale: float
    target_scale: float | None
    unit_variance: bool

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the measurement."""
        return self.measured.name

    @property
    def dims(self) -> Any:  # type: ignore[override]
        """Those of the measurement."""
        return self.measured.dims

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """Inputs and targets as the remedy scales them."""
        if self.unit_variance:
            check_unit_variance(network)
        x, *ys = inputs
        if self.target_scale is not None:
            ys = [np.float32(self.target_scale) * np.eye(CLASSES, dtype=np.float32)[np.asarray(y)] for y in ys]
        return self.measured.check(network, (np.asarray(x) * np.float32(self.input_scale), *ys))

    def compiled_for(self) -> Measurement:
        """Factors on inputs and targets are taken before the program."""
        return Remedied(self.measured.compiled_for(), 1.0, None, self.unit_variance)

    def draw(self, key: Array, network: Network) -> Any:
        """The measurement's."""
        return self.measured.draw(key, network)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """The measurement's, of draws of unit variance if asked for."""
        return self.measured.measure(self._drawn(drawn, scales, inputs[0][None]), scales, numbers, *inputs)

    def over_examples(
        self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """The measurement's, of draws of unit variance if asked for."""
        return self.measured.over_examples(self._drawn(drawn, scales, inputs[0]), scales, numbers, *inputs)

    def _drawn(self, drawn: Any, scales: Scales, xs: Array) -> Any:
        if not self.unit_variance:
            return drawn
        parameters, *rest = drawn
        return (unit_variance(parameters, scales, xs), *rest)

    def bytes_per_point(self, network: Network) -> int:
        """The measurement's."""
        return self.measured.bytes_per_point(network)

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """The measurement's."""
        return self.measured.chunk(network, points, memory, workers)

    def finish(self, arrays: Arrays, where: str) -> Arrays:
        """The measurement's."""
        return self.measured.finish(arrays, where)


# --- the textbooks --------------------------------------------------------------------------------------------------


@kinds
def remedies(
    kind: str = "vanishing", *, layers: int | None = None, width: int = 100, examples: int = 32
) -> dict[str, Remedy]:
    """A network whose gradients vanish or explode, and what the textbooks advise: networks of a sweep, by name.

    ``vg.sweep(vg.remedies(), *vg.ensembles.remedy_examples(), measure=vg.first_steps(), leading="example", key=key)``
    measures them all; `remedy_table` prints it, `vgjax.plots.remedies` draws it.

    Args:
        kind: ``"vanishing"``: a sigmoid network of 50 hidden layers; ``"exploding"``: a ReLU network of 50 hidden
            layers with sigma_w = 3; ``"recurrent"``: a tanh network of 200 time steps.
        layers: hidden layers, or time steps, if not those.
        width: units of a hidden layer.
        examples: of a batch, which batch norm has to know.

    Returns:
        name -> `Remedy`, the network itself first.

    Raises:
        ValueError: an unknown kind, or a number below 1.
    """
    book, usual = _BOOKS[known("kind", kind, _BOOKS)]
    layers = usual if layers is None else positive_integer("layers", layers)
    return book(layers, positive_integer("width", width), positive_integer("examples", examples))


@kinds
def remedy_examples(
    kind: str = "vanishing", *, layers: int | None = None, examples: int = 32, key: RandomKey | None = None
) -> Examples:
    """Inputs and labels for `remedies`: digits, or for ``"recurrent"`` sequences of noise with random labels.

    Args:
        kind, layers, examples: as for `remedies`.
        key: of the noise (default ``jax.random.key(0)``).
    """
    _, usual = _BOOKS[known("kind", kind, _BOOKS)]
    examples = positive_integer("examples", examples)
    if kind != "recurrent":
        digits = data.digits()
        return Examples(digits.inputs[:examples], digits.labels[:examples])
    of_inputs, of_labels = jax.random.split(jax.random.key(0) if key is None else key)
    labels = jax.random.randint(of_labels, (examples,), 0, CLASSES)
    steps = usual if layers is None else positive_integer("layers", layers)
    return Examples(jax.random.normal(of_inputs, (examples, steps, _SEQUENCE_INPUTS)), labels)


@kinds
def remedy_table(result: Result, *, markdown: bool = False) -> str:
    """A sweep of `first_steps` over several networks as a table, mean and standard error over the draws.

    Args:
        result: of ``vgjax.sweep(vgjax.remedies(...), ..., measure=vgjax.first_steps())``.
        markdown: as a table of Markdown.

    Raises:
        ValueError: another result.
    """
    if result.measure != FirstSteps.name or not result.several or result.axes:
        raise ValueError(f"a table of remedies needs first_steps of several networks without axes, got {result!r:.80}")
    check_complete("a table of remedies", result)
    rows = _rows(result)
    if not markdown:
        return _aligned([list(rows[0]), *(list(row.values()) for row in rows)])
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _rows(result: Result) -> list[dict[str, str]]:
    depths = {name: network.depth for name, network in result.networks.items() if network is not None}
    table = []
    for i, (name, depth) in enumerate(depths.items()):
        log_ratio, lost, first, every = (
            a[i] for a in (result.log_ratio, result.lost_layers, result.log_first_step, result.log_step)
        )
        table.append(
            {
                "remedy": name,
                "log10 first/last": _with_error(log_ratio / math.log(10), ".1f"),
                "per layer": _with_error(np.exp(log_ratio / depth), ".3f"),
                "float32 loses": f"{_with_error(lost, '.0f')} of {depth + 1}",
                "log10 first step": _with_error(first / math.log(10), ".1f"),
                "log10 step": _with_error(every / math.log(10), ".1f"),
            }
        )
    return table


def _with_error(values: np.ndarray, digits: str) -> str:
    mean = format(values.mean(), digits)
    return mean if len(values) < 2 else f"{mean} ± {format(values.std(ddof=1) / math.sqrt(len(values)), digits)}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def _vanishing(layers: int, width: int, examples: int) -> dict[str, Remedy]:
    """A deep sigmoid network, and what textbooks advise."""
    net = functools.partial(mlp, width=width, depth=layers - 1, inputs=64, outputs=CLASSES)
    sick = net(activation="sigmoid")
    unchanged = Remedy(sick)
    return {
        f"sigmoid, {layers} layers": unchanged,
        "gradient clipping": replace(unchanged, clip=1.0),
        "learning rate x 100": replace(unchanged, learning_rate=10.0),
        "inputs x 10": replace(unchanged, input_scale=10.0),
        "squared error": replace(unchanged, loss="squared_error"),
        "squared error, targets x 100": replace(unchanged, loss="squared_error", target_scale=100.0),
        "He weights": replace(unchanged, scales={"sigma_w": _HE}),
        "weights x 4": replace(unchanged, scales={"sigma_w": 4.0}),
        "orthogonal": Remedy(net(activation="sigmoid", kernel_init="orthogonal")),
        "orthogonal, unit variance (LSUV)": Remedy(
            net(activation="sigmoid", kernel_init="orthogonal"), unit_variance=True
        ),
        "tanh, critical": Remedy(net(activation="tanh")),
        "ReLU, LeCun weights": Remedy(net(activation="relu")),
        "ReLU, He weights": Remedy(net(activation="relu"), {"sigma_w": _HE}),
        "SELU, LeCun weights": Remedy(net(activation="selu")),
        "layer norm": Remedy(net(activation="sigmoid", norm="layer")),
        "batch norm": Remedy(net(activation="sigmoid", norm=norm("batch", batch=examples))),
        "residual": Remedy(net(activation="sigmoid", residual="pre")),
        "ReZero": Remedy(net(activation="sigmoid", residual=branch("pre", scheme="rezero"))),
    }


def _exploding(layers: int, width: int, examples: int) -> dict[str, Remedy]:
    """A deep ReLU network with weights too large, and what textbooks advise."""
    net = functools.partial(mlp, width=width, depth=layers - 1, inputs=64, outputs=CLASSES, activation="relu")
    large = {"sigma_w": 3.0}
    unchanged = Remedy(net(), large)
    return {
        f"ReLU, sigma_w = 3, {layers} layers": unchanged,
        "gradient clipping": replace(unchanged, clip=1.0),
        "learning rate / 100": replace(unchanged, learning_rate=0.001),
        "inputs / 100": replace(unchanged, input_scale=0.01),
        "squared error": replace(unchanged, loss="squared_error"),
        "squared error, targets / 100": replace(unchanged, loss="squared_error", target_scale=0.01),
        "tanh instead": Remedy(net(activation="tanh"), large),
        "orthogonal": Remedy(net(kernel_init="orthogonal"), large),
        "unit variance (LSUV)": replace(unchanged, unit_variance=True),
        "He weights": Remedy(net(), {"sigma_w": _HE}),
        "layer norm": Remedy(net(norm="layer"), large),
        "batch norm": Remedy(net(norm=norm("batch", batch=examples)), large),
        "residual": Remedy(net(residual="pre"), large),
        "residual, branch / sqrt(depth), He": Remedy(net(residual=branch("pre", scheme="stable")), {"sigma_w": _HE}),
    }


def _recurrent(layers: int, width: int, examples: int) -> dict[str, Remedy]:
    """A recurrent network over many steps, and what textbooks advise."""
    sizes: dict[str, Any] = {"width": width, "depth": layers, "inputs": _SEQUENCE_INPUTS, "outputs": CLASSES}
    simple, gated = rnn(**sizes), {"lstm": lstm(**sizes), "gru": gru(**sizes)}
    unchanged = Remedy(simple)
    chosen = {
        f"tanh RNN, {layers} steps": unchanged,
        "gradient clipping": replace(unchanged, clip=1.0),
        "learning rate x 100": replace(unchanged, learning_rate=10.0),
        "inputs / 10": replace(unchanged, input_scale=0.1),
        "larger weights (sigma_w = 2)": replace(unchanged, scales={"sigma_w": 2.0}),
        "orthogonal": Remedy(rnn(**sizes, kernel_init="orthogonal")),
        "identity, ReLU (IRNN)": Remedy(rnn(**sizes, kernel_init="identity", activation="relu"), {"sigma_v": 0.03}),
    }
    for name, biases in (("lstm", (0.0, 1.0, 4.0)), ("gru", (0.0, 1.0, 4.0))):
        for bias in biases:
            chosen[f"{name.upper()}, forget bias {bias:g}"] = Remedy(gated[name], {"forget_bias": bias})
    return chosen


_BOOKS = {"vanishing": (_vanishing, 50), "exploding": (_exploding, 50), "recurrent": (_recurrent, 200)}
"""Remedies as a function of layers, width and examples, and the usual number of layers."""
