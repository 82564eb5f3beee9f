"""Remedies, measured: a network whose gradients vanish or explode, and what each treatment of the textbooks does to it.

Every treatment is a network with its scales and with what an optimizer would do to its first gradient; all are measured
alike, on the same inputs. One that does not help is seen not to help.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import data
from vgjax.checks import known, positive_integer
from vgjax.ensembles import runner
from vgjax.ensembles.result import Result, machine
from vgjax.initializers import Scales
from vgjax.measure.gradients import GradientFlow, gradient_flow
from vgjax.networks.builders import gru, lstm, mlp, rnn
from vgjax.networks.calibration import lsuv
from vgjax.networks.layers import Parameters, init, scaled
from vgjax.networks.network import Network, check_scales

CLASSES = 10


@dataclass(frozen=True)
class Treatment:
    """A network and how its first step of gradient descent would be taken.

    Attributes:
        network: what it builds; its examples are a batch, or one state if it takes a batch as one.
        scales: of its blocks.
        input_scale, target_scale: factors on inputs and (with squared error) on one-hot targets.
        loss: cross_entropy or squared_error.
        learning_rate: of plain gradient descent.
        clip: largest norm of the whole gradient that a step takes; None for no clipping.
        unit_variance: rescale the kernels layer by layer first (`lsuv`).
    """

    network: Network
    scales: Mapping[str, Any] = field(default_factory=dict)
    input_scale: float = 1.0
    target_scale: float = 1.0
    loss: str = "cross_entropy"
    learning_rate: float = 0.1
    clip: float | None = None
    unit_variance: bool = False


@dataclass(frozen=True)
class Remedies(Result):
    """What `remedies` measured. Leading axes are (seed, treatment); the first treatment is the patient itself.

    Attributes:
        treatment: names, shape ``(treatments,)``.
        depth: layers (or steps) of each, shape ``(treatments,)``.
        log_ratio: ln of ||dL/ds_0|| / ||dL/ds_L||, first layer against last: what the depth does to the gradient.
        lost: how many of the L + 1 layers plain float32 reads as 0 or not finite, averaged over the examples.
        log_first_step: ln of ||learning rate x gradient|| / ||weights|| of the first layer's kernel (of a recurrence,
            what the first time step contributes to the kernel of the inputs).
        log_step: the same of all parameters together.
        axes, fixed: empty.
        provenance: patient, key, versions, device: plain JSON values.
    """

    trailing: ClassVar[dict[str, tuple[str, ...]]] = {
        name: ("treatment",) for name in ("log_ratio", "lost", "log_first_step", "log_step")
    }

    treatment: np.ndarray
    depth: np.ndarray
    log_ratio: np.ndarray
    lost: np.ndarray
    log_first_step: np.ndarray
    log_step: np.ndarray
    axes: dict[str, np.ndarray]
    fixed: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def coordinates(self) -> dict[str, Any]:
        """Names of the treatments, and their depths."""
        return {"treatment": self.treatment, "depth": ("treatment", self.depth)}

    @property
    def factor(self) -> np.ndarray:
        """Factor on the gradient's norm in one layer, shape ``(seed, treatments)``: below 1 it vanishes."""
        return np.exp(self.log_ratio / self.depth)

    def rows(self) -> list[dict[str, str]]:
        """The table as text: one dict a treatment, mean +- standard error over the seeds."""
        columns = {
            "log10 first/last": (self.log_ratio / math.log(10), ".1f"),
            "per layer": (self.factor, ".3f"),
            "float32 loses": (self.lost, ".0f"),
            "log10 first step": (self.log_first_step / math.log(10), ".1f"),
            "log10 step": (self.log_step / math.log(10), ".1f"),
        }
        table = []
        for i, name in enumerate(self.treatment):
            row = {"treatment": str(name)}
            for column, (values, digits) in columns.items():
                row[column] = _with_error(values[:, i], digits)
            row["float32 loses"] += f" of {self.depth[i] + 1}"
            table.append(row)
        return table

    def __str__(self) -> str:
        return _aligned([list(self.rows()[0]), *(list(row.values()) for row in self.rows())], "  ")

    def to_markdown(self) -> str:
        """The table in Markdown."""
        rows = self.rows()
        cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def remedies(
    patient: str = "vanishing",
    *,
    key: Array | None = None,
    seeds: int = 8,
    layers: int | None = None,
    width: int = 100,
    examples: int = 32,
    treatments: Mapping[str, Treatment] | None = None,
    progress: bool | None = None,
) -> Remedies:
    """Measure what each remedy does to a network whose gradients vanish or explode.

    Args:
        patient: ``"vanishing"``: a sigmoid network of 50 hidden layers; ``"exploding"``: a ReLU network of 50 hidden
            layers with sigma_w = 3; ``"recurrent"``: a tanh network of 200 time steps.
        key: `jax.random.key` of the draws (default ``jax.random.key(0)``).
        seeds: independent draws of each.
        layers: hidden layers, or time steps, if not those.
        width: units of a hidden layer.
        examples: images (or sequences) of the loss.
        treatments: yours, instead of the textbooks': name -> `Treatment`, the patient first; all with inputs of 64
            numbers (of ``(layers, 8)`` for ``"recurrent"``) and 10 outputs.
        progress: a bar on standard error; None shows it on a terminal only.

    Returns:
        `Remedies`; print it, ``to_markdown()``, ``to_xarray()``, ``save(path)``; `vgjax.plots.remedies` draws it.

    Raises:
        ValueError: an unknown patient, a number below 1, or a treatment with unknown scales.
    """
    known("patient", patient, PATIENTS)
    seeds, examples = positive_integer("seeds", seeds), positive_integer("examples", examples)
    width, layers = positive_integer("width", width), positive_integer("layers", layers or PATIENTS[patient][1])
    chosen = PATIENTS[patient][0](layers, width, examples) if treatments is None else dict(treatments)
    if not chosen:
        raise ValueError("treatments must name at least one, got none")
    for treatment in chosen.values():
        check_scales(treatment.network, Scales(**treatment.scales))
    key = jax.random.key(0) if key is None else key
    xs, ys = _examples(jax.random.fold_in(key, seeds), patient, layers, examples)

    measured = [
        [_measure(treatment, xs, ys, jax.random.fold_in(key, seed)) for seed in range(seeds)]
        for treatment in runner.progress(iter(chosen.values()), len(chosen), "remedies", progress)
    ]
    ratio, lost, first, every = np.array(measured).transpose(2, 1, 0)
    about: dict[str, Any] = {
        **machine(),
        "patient": patient,
        "layers": layers,
        "width": width,
        "examples": examples,
        "seeds": seeds,
    }
    about |= {"key": np.asarray(jax.random.key_data(key)).tolist()}
    depth = np.array([treatment.network.depth for treatment in chosen.values()])
    return Remedies(np.array(list(chosen)), depth, ratio, lost, first, every, {}, {}, about)


# --- one treatment, one draw ----------------------------------------------------------------------------------------


def _measure(treatment: Treatment, xs: Array, ys: Array, key: Array) -> tuple[float, float, float, float]:
    """log_ratio, lost, log_first_step, log_step."""
    network, scales = treatment.network, Scales(**treatment.scales)
    xs = treatment.input_scale * xs
    parameters = init(key, network, stream=False)
    if treatment.unit_variance:
        parameters = lsuv(parameters, scales, xs)
    together = xs.shape == network.input_shape  # the batch is one state (batch norm)
    targets = ys if treatment.loss == "cross_entropy" else treatment.target_scale * jax.nn.one_hot(ys, CLASSES)
    flow = gradient_flow(parameters, scales, xs, targets, loss=treatment.loss)
    by_layer = np.asarray(flow.log_gradient, float)
    lost = np.asarray(flow.naive["float32"], float)
    if not together:
        by_layer, lost = np.logaddexp.reduce(2 * by_layer, axis=0) / 2, lost.mean(axis=0)
    first, every = _log_steps(flow, scaled(parameters, scales))
    shrink = 0.0 if treatment.clip is None else min(0.0, math.log(treatment.clip) - every[0])
    rate = math.log(treatment.learning_rate) + shrink
    steps = (rate + gradient - weights for gradient, weights in (first, every))
    return by_layer[0] - by_layer[-1], lost.sum(), *steps


def _log_steps(flow: GradientFlow, ordinary: Parameters) -> tuple[tuple[float, float], tuple[float, float]]:
    """ln of the norms of gradient and weights: of the kernel that the inputs enter by, and of all parameters."""
    by_path = {path: np.asarray(log, float) for path, log in flow.log_parameter_gradient.items()}
    tied = {path: np.asarray(log, float) for path, log in flow.log_tied_gradient.items()}
    whole = [log.ravel() for path, log in {**by_path, **tied}.items()]
    every = _log_norm_of_logs(np.concatenate(whole)), _log_norm(ordinary)
    if "stem/kernel" in by_path:
        return (float(by_path["stem/kernel"]), _log_norm(ordinary.stem["kernel"])), every
    (cell,) = ordinary.stages
    return (float(by_path["input_kernel"][0]), _log_norm(cell["input_kernel"])), every  # type: ignore[call-overload]


def _log_norm_of_logs(logs: np.ndarray) -> float:
    return float(np.logaddexp.reduce(2 * logs[~np.isnan(logs)]) / 2)


def _log_norm(tree: Any) -> float:
    return math.log(math.sqrt(sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(tree))))


def _examples(key: Array, patient: str, layers: int, examples: int) -> tuple[Array, Array]:
    if patient != "recurrent":
        digits = data.digits()
        return digits.inputs[:examples], digits.labels[:examples]
    of_inputs, of_labels = jax.random.split(key)
    labels = jax.random.randint(of_labels, (examples,), 0, CLASSES)
    return jax.random.normal(of_inputs, (examples, layers, _SEQUENCE_INPUTS)), labels


def _with_error(values: np.ndarray, digits: str) -> str:
    mean = format(values.mean(), digits)
    return mean if len(values) < 2 else f"{mean} ± {format(values.std(ddof=1) / math.sqrt(len(values)), digits)}"


def _aligned(rows: Sequence[Sequence[str]], between: str) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows)
    return "\n".join(between.join(line) for line in lines)


# --- the textbooks --------------------------------------------------------------------------------------------------

_SEQUENCE_INPUTS = 8
_HE = math.sqrt(2)


def vanishing(layers: int, width: int, examples: int) -> dict[str, Treatment]:
    """A deep sigmoid network, and what textbooks advise."""
    net = functools.partial(mlp, width=width, depth=layers - 1, inputs=64, outputs=CLASSES)
    sick = net(activation="sigmoid")
    patient = Treatment(sick)
    return {
        f"sigmoid, {layers} layers": patient,
        "gradient clipping": replace(patient, clip=1.0),
        "learning rate x 100": replace(patient, learning_rate=10.0),
        "inputs x 10": replace(patient, input_scale=10.0),
        "squared error": replace(patient, loss="squared_error"),
        "squared error, targets x 100": replace(patient, loss="squared_error", target_scale=100.0),
        "He weights": replace(patient, scales={"sigma_w": _HE}),
        "weights x 4": replace(patient, scales={"sigma_w": 4.0}),
        "orthogonal": Treatment(net(activation="sigmoid", kernel_init="orthogonal")),
        "orthogonal, unit variance (LSUV)": Treatment(
            net(activation="sigmoid", kernel_init="orthogonal"), unit_variance=True
        ),
        "tanh, critical": Treatment(net(activation="tanh")),
        "ReLU, LeCun weights": Treatment(net(activation="relu")),
        "ReLU, He weights": Treatment(net(activation="relu"), {"sigma_w": _HE}),
        "SELU, LeCun weights": Treatment(net(activation="selu")),
        "layer norm": Treatment(net(activation="sigmoid", norm="layer")),
        "batch norm": Treatment(net(activation="sigmoid", norm="batch", batch=examples)),
        "residual": Treatment(net(activation="sigmoid", residual="pre")),
        "ReZero": Treatment(net(activation="sigmoid", residual="pre", scheme="rezero")),
    }


def exploding(layers: int, width: int, examples: int) -> dict[str, Treatment]:
    """A deep ReLU network with weights too large, and what textbooks advise."""
    net = functools.partial(mlp, width=width, depth=layers - 1, inputs=64, outputs=CLASSES, activation="relu")
    large = {"sigma_w": 3.0}
    patient = Treatment(net(), large)
    return {
        f"ReLU, sigma_w = 3, {layers} layers": patient,
        "gradient clipping": replace(patient, clip=1.0),
        "learning rate / 100": replace(patient, learning_rate=0.001),
        "inputs / 100": replace(patient, input_scale=0.01),
        "squared error": replace(patient, loss="squared_error"),
        "squared error, targets / 100": replace(patient, loss="squared_error", target_scale=0.01),
        "tanh instead": Treatment(net(activation="tanh"), large),
        "orthogonal": Treatment(net(kernel_init="orthogonal"), large),
        "unit variance (LSUV)": replace(patient, unit_variance=True),
        "He weights": Treatment(net(), {"sigma_w": _HE}),
        "layer norm": Treatment(net(norm="layer"), large),
        "batch norm": Treatment(net(norm="batch", batch=examples), large),
        "residual": Treatment(net(residual="pre"), large),
        "residual, branch / sqrt(depth), He": Treatment(net(residual="pre", scheme="stable"), {"sigma_w": _HE}),
    }


def recurrent(layers: int, width: int, examples: int) -> dict[str, Treatment]:
    """A recurrent network over many steps, and what textbooks advise."""
    sizes: dict[str, Any] = {"width": width, "depth": layers, "inputs": _SEQUENCE_INPUTS, "outputs": CLASSES}
    simple, gated = rnn(**sizes), {"lstm": lstm(**sizes), "gru": gru(**sizes)}
    patient = Treatment(simple)
    chosen = {
        f"tanh RNN, {layers} steps": patient,
        "gradient clipping": replace(patient, clip=1.0),
        "learning rate x 100": replace(patient, learning_rate=10.0),
        "inputs / 10": replace(patient, input_scale=0.1),
        "larger weights (sigma_w = 2)": replace(patient, scales={"sigma_w": 2.0}),
        "orthogonal": Treatment(rnn(**sizes, kernel_init="orthogonal")),
        "identity, ReLU (IRNN)": Treatment(rnn(**sizes, kernel_init="identity", activation="relu"), {"sigma_v": 0.03}),
    }
    for name, biases in (("lstm", (0.0, 1.0, 4.0)), ("gru", (0.0, 1.0, 4.0))):
        for bias in biases:
            chosen[f"{name.upper()}, forget bias {bias:g}"] = Treatment(gated[name], {"forget_bias": bias})
    return chosen


PATIENTS = {"vanishing": (vanishing, 50), "exploding": (exploding, 50), "recurrent": (recurrent, 200)}
"""Patients: their treatments as a function of layers, width and examples, and their usual number of layers."""
