"""One good call of everything public, for tests that are about all of it; what is public is found by introspection."""

import functools
import gzip
import inspect
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import vgjax as vg
from vgjax.ensembles import Measurement


def public_names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a wing shows: its list, or else what it defines without an underscore."""
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    ]  # fmt: skip
    yield from ((name, getattr(module, name)) for name in names)


@functools.cache
def public_objects() -> dict[str, Any]:
    """All public functions and classes of all wings, each by its first name."""
    found: dict[str, Any] = {}
    modules, seen = [vg], set()
    for module in modules:
        for name, value in public_names(module):
            if inspect.ismodule(value) and value not in modules:
                modules.append(value)
            elif (inspect.isfunction(value) or inspect.isclass(value)) and id(value) not in seen:
                seen.add(id(value))
                found[f"{module.__name__.removeprefix('vgjax').lstrip('.')}.{name}".lstrip(".")] = value
    return found


RESULTS = (
    "Critical", "MeanField", "Shaped", "Facts", "Spectrum",
    "Change", "Diagnosis", "Frontier", "Path", "Readings", "Row", "Verdict", "Root", "Edge",
)  # fmt: skip
"""Dataclasses that the library makes and users read."""


def is_container(kind: type) -> bool:
    """What JAX takes apart and puts together, also of what is no number (looked at where it is used), and results."""
    return issubclass(kind, tuple) or kind is vg.networks.Parameters or kind.__name__ in RESULTS


@functools.cache
def public_calls() -> dict[str, Callable[..., Any]]:
    """All public functions, constructors and methods, by name.

    The methods of blocks and measurements are called by the library, inside compiled programs: they are no edge.
    """
    calls: dict[str, Callable[..., Any]] = {}
    for name, value in public_objects().items():
        if inspect.isfunction(value):
            calls[name] = value
            continue
        if value is Measurement:
            continue
        if not is_container(value):
            calls[name] = value.__init__
        for method, function in vars(value).items():
            protocol = issubclass(value, (nnx.Module, vg.ensembles.Case)) or method.startswith(("_", "tree_"))
            if inspect.isfunction(function) and (not protocol or (value is vg.Activation and method == "__call__")):
                calls[f"{name}.{method}"] = function
    for name in ("plots.styled", "blocks.call", "blocks.step", "activations.apply"):  # a decorator; inside programs
        calls.pop(name)
    return calls


# --- what calls are made of -----------------------------------------------------------------------------------------


class World:
    """Small networks, draws, results, made when they are asked for."""

    key = jax.random.key(0)
    scales = vg.Scales(sigma_w=1.0)
    both = vg.Scales(sigma_w=1.0, sigma_b=0.0)
    grid = np.linspace(0.5, 2, 3)

    @functools.cached_property
    def network(self) -> vg.Network:
        return vg.mlp(width=4, depth=3, inputs=4, outputs=3)

    @functools.cached_property
    def parameters(self) -> Any:
        return vg.init(self.key, self.network)

    @functools.cached_property
    def x(self) -> np.ndarray:
        return np.asarray(jax.random.normal(self.key, (4,)))

    @functools.cached_property
    def xs(self) -> np.ndarray:
        return np.asarray(jax.random.normal(self.key, (5, 4)))

    @functools.cached_property
    def tokens(self) -> Any:
        network = vg.transformer(width=4, depth=2, heads=2, inputs=(3, 4), outputs=2)
        return vg.init(self.key, network), vg.Scales(), np.ones((3, 4), np.float32)

    @functools.cached_property
    def examples(self) -> vg.data.Examples:
        return vg.data.Examples(self.xs, np.arange(5) % 3)

    @functools.cached_property
    def sweep(self) -> vg.Result:
        """Of gains over two scales."""
        axes = {"sigma_w": self.grid, "sigma_b": np.array([0.0, 0.5])}
        log_gain = np.broadcast_to(np.log(self.grid)[:, None, None] * np.arange(4), (2, 3, 2, 4)).copy()
        arrays = {"log_gain": log_gain, "log_mean_square": 0 * log_gain}
        arrays["first_inexact_layer"] = np.full((2, 3, 2), 4)
        dims = dict.fromkeys(arrays, ("layer",)) | {"first_inexact_layer": ()}
        return vg.Result("gains", axes, arrays, dims, networks={"": self.network}, provenance={"state_size": 4})

    @functools.cached_property
    def run(self) -> Path:
        """The folder of a finished one."""
        vg.sweep(self.network, self.x, key=self.key, seeds=1, folder=self.folder / "run")
        return self.folder / "run"

    def trainings(self, networks: dict[str, vg.Network], axes: dict[str, np.ndarray]) -> vg.Result:
        """Whose loss falls at the first half of every axis."""
        lead = *([len(networks)] if "" not in networks else []), 1, *map(len, axes.values())
        falls = np.arange(np.prod(lead)).reshape(lead) % lead[-1] < lead[-1] / 2
        accuracy = np.where(falls, 0.9, 0.1)[..., None]
        arrays = {"loss": np.where(falls, 0.5, 2.0)[..., None] ** np.arange(20), "train_accuracy": accuracy}
        arrays |= {"first_nonfinite": np.full(falls.shape, 20), "converged": falls, "diverged": ~falls}
        dims = {name: ("step",) if "accuracy" in name else ("update",) if name == "loss" else () for name in arrays}
        return vg.Result("trainings", axes, arrays, dims, networks=networks)

    @functools.cached_property
    def checked(self) -> vg.training.CoordinateCheck:
        logs = {what: np.zeros((2, 1, 2, 4)) for what in ("size", "change", "update")}
        along_depth = {what: np.zeros((1, 1, 2, 6)) for what in logs}
        return vg.training.CoordinateCheck("mine", (4, 8), (2,), logs, along_depth)

    @functools.cached_property
    def trained(self) -> vg.Result:
        axes = {"learning_rate": np.geomspace(1e-2, 1e2, 4), "sigma_w": np.linspace(0.5, 2, 4)}
        return self.trainings({"": self.network}, axes)

    @functools.cached_property
    def trained_deep(self) -> vg.Result:
        networks = {f"depth {depth}": vg.mlp(width=2, depth=depth, inputs=2) for depth in (1, 2)}
        return self.trainings(networks, {"sigma_w": self.grid})

    @functools.cached_property
    def steps(self) -> vg.Result:
        """First steps under two remedies."""
        networks = {"one": self.network, "other": self.network}
        arrays = {name: np.arange(4.0).reshape(2, 2) for name in vg.first_steps().dims}
        return vg.Result("first_steps", {}, arrays, dict.fromkeys(arrays, ()), networks=networks)

    @functools.cached_property
    def training(self) -> Any:
        step, series = np.arange(2), np.ones(2)
        snapshots = vg.training.Snapshots(step, *[series] * 4, *[np.arange(8.0).reshape(2, 4)] * 2)
        return vg.training.Training(snapshots, np.ones(5), np.int32(5), self.parameters, self.scales)

    @functools.cached_property
    def flow(self) -> Any:
        along = jax.tree.map(lambda a: np.stack([a, a]), self.parameters)
        times = np.array([0.0, 0.1])
        return vg.training.ContinuousTraining(times, times, along, self.scales, "complete", 3)

    @functools.cached_property
    def student(self) -> dict[str, Any]:
        """What is trained: as little as there is."""
        network = vg.stack(vg.dense(1, 1), depth=1, input_shape=1)
        data = vg.data.Examples(np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32))
        return {"parameters": vg.init(self.key, network), "scales": vg.Scales(sigma_b=0.0), "data": data}

    @functools.cached_property
    def spectrum(self) -> Any:
        return vg.log_singular_values(self.parameters, self.scales, self.x)

    @functools.cached_property
    def comparison(self) -> Any:
        return vg.compare(self.sweep)

    @functools.cached_property
    def edge(self) -> Any:
        line = {name: self.grid for name in ("values", "edge", "standard_error", "slope", "theory")}
        told = {"target_rate": 0.0, "seeds": 2, "reasons": ("", "", ""), "about_theory": ("", "", "")}
        count = np.full(3, 8)
        return vg.ensembles.Edge("sigma_w", "sigma_b", **line, **told, evaluations=count, network="mlp")

    @functools.cached_property
    def attending(self) -> vg.blocks.Spec:
        return vg.networks.chain(
            norm=vg.norm("layer").block(4, "float32"), attention=vg.blocks.spec(vg.blocks.Attention, 4, 2)
        )

    @functools.cached_property
    def spec(self) -> vg.blocks.Spec:
        return vg.dense(4, 4, "tanh")

    @functools.cached_property
    def block(self) -> nnx.Module:
        return self.spec.build(nnx.Rngs(0))

    @functools.cached_property
    def readings(self) -> vg.diagnosis.Readings:
        """Of a path of four states."""
        rows = tuple(
            vg.diagnosis.Row(f"layers/{i}", shape=(5, 4), log_rms=0.0, log_cotangent=-3.0 * i) for i in range(4)
        )
        return vg.diagnosis.Readings((vg.diagnosis.Path("depth", "depth", rows),), rows, {"layers/0": 0.0})

    @functools.cached_property
    def diagnosis(self) -> vg.diagnosis.Diagnosis:
        return vg.diagnosis.Diagnosis(self.readings)

    @functools.cached_property
    def proposal(self) -> vg.diagnosis.Proposal:
        verdict = self.diagnosis.verdict
        return vg.diagnosis.Proposal("nothing", "leave it as it is", verdict, verdict, dict)

    @functools.cached_property
    def any_model(self) -> Any:
        """A function and its parameters, for inputs of any kind."""
        return scaled, {"scale": np.ones((), np.float32)}

    @functools.cached_property
    def folder(self) -> Path:
        """With a pair of files of MNIST, and a saved result."""
        folder = Path(tempfile.mkdtemp())
        for part in ("train", "t10k"):
            pixels = struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2) + bytes(range(8))
            (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
            labels = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([0, 1])
            (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        self.sweep.save(folder / "result.npz")
        self.diagnosis.save(folder / "diagnosis.npz")
        return folder

    @property
    def ax(self) -> Any:
        return Figure().subplots()


def phi(h: Any) -> Any:
    """An activation of a user's own."""
    return h


def scaled(params: Any, *arguments: Any) -> Any:
    """A model of a user's own, of whatever it is given."""
    arrays = [a for a in jax.tree.leaves(arguments) if isinstance(a, jax.Array) and a.dtype in (np.float32, np.int32)]
    return params["scale"] * sum(map(jax.numpy.sum, arrays))


def measured(parameters: Any, scales: Any, x: Any) -> dict[str, Any]:
    """A measurement of a user's own."""
    return {"size": (x**2).sum()}


@functools.cache
def world() -> World:
    return World()


@functools.cache
def arguments(name: str) -> dict[str, Any]:
    """One good call: the arguments by name; those that are left out have defaults.

    Raises:
        KeyError: a new public function or class that has no entry here yet.
    """
    w = world()
    pass_ = {"parameters": w.parameters, "scales": w.scales, "x": w.x}
    sizes = {"width": 4, "depth": 2, "inputs": 4}
    at = {"activation": "tanh", "sigma_w": 1.5, "sigma_b": 0.1}
    rngs = nnx.Rngs(0)
    searched = {"network": w.network, "inputs": w.x, "key": w.key, "seeds": 2, "options": {"sigma_out": 1.0}}
    table: dict[str, Callable[[], dict[str, Any]]] = {
        # networks
        "mlp": lambda: sizes,
        "cnn": lambda: {"channels": 2, "depth": 2, "inputs": (3, 3, 1)},
        "resnet": lambda: {"channels": (2, 2), "depth": (1, 1), "inputs": (4, 4, 1), "norm": None},
        "rnn": lambda: sizes,
        "lstm": lambda: sizes,
        "gru": lambda: sizes,
        "transformer": lambda: {"width": 4, "depth": 2, "heads": 2, "inputs": (3, 4)},
        "stack": lambda: {
            "block": vg.blocks.Norm, "arguments": ("layer", 4),
            "depth": 2, "input_shape": 4, "options": {"epsilon": 0.1}},
        "dense": lambda: {"fan_in": 4, "fan_out": 4},
        "residual": lambda: {"branch": w.spec},
        "norm": lambda: {"kind": "layer"},
        "networks.branch": lambda: {"kind": "pre"},
        "networks.attention": dict,
        "networks.feed_forward": dict,
        "networks.tokens": lambda: {"length": 3, "vocabulary": 5},
        "networks.parallel": lambda: {"how": "sum", "layers": (w.spec,), "parts": {"last": w.spec}},
        "networks.chain": lambda: {"layers": (w.spec, w.spec), "parts": {"last": w.spec}},
        "networks.conv": lambda: {"channels_in": 2, "channels_out": 2},
        "sequential": lambda: {"blocks": (w.spec,), "input_shape": 4},
        "networks.concatenated": lambda: {"branch": w.spec},
        "networks.normalized_adjacency": lambda: {"adjacency": np.ones((3, 3))},
        "networks.graph_conv": lambda: {
            "adjacency": np.eye(3), "fan_in": 4, "fan_out": 4, "options": {"norm": "layer"},
        },
        "networks.graph_network": lambda: sizes | {"adjacency": np.eye(3)},
        "blocks.GraphConv": lambda: {
            "adjacency": np.eye(3), "fan_in": 4, "fan_out": 4, "rngs": rngs, "dense": {"activation": "tanh"},
        },
        "networks.spiking": lambda: sizes,
        "blocks.FourierFeatures": lambda: {"inputs": 4, "waves": 3, "rngs": rngs},
        "blocks.LIFCell": lambda: {"width": 4, "inputs": 4, "options": {"rngs": rngs, "kernel_init": "orthogonal"}},
        "blocks.WeightNormalized": lambda: {
            "fan_in": 4, "fan_out": 4, "rngs": rngs, "dense": {"activation": "tanh"},
        },
        "blocks.surrogate": dict,
        "networks.hyper_connections": lambda: {"branch": w.spec},
        "networks.depth_average": lambda: {"branch": w.spec, "memory": 3},
        "blocks.DepthAverage": lambda: {"branch": w.spec, "memory": 3, "rngs": rngs},
        "blocks.HyperConnection": lambda: {"branch": w.spec, "streams": 4, "rngs": rngs},
        "blocks.Merge": lambda: {"rngs": rngs},
        "blocks.Remember": lambda: {"memory": 3, "rngs": rngs},
        "blocks.Split": lambda: {"streams": 4, "rngs": rngs},
        "blocks.Concatenated": lambda: {"branch": w.spec, "rngs": rngs},
        "Network.completed": lambda: {"self": w.network, "scales": w.scales},
        "networks.diagonal_rnn": lambda: sizes,
        "networks.mamba": lambda: {"width": 4, "depth": 2},
        "networks.min_gru": lambda: sizes,
        "networks.min_lstm": lambda: sizes,
        "networks.rg_lru": lambda: {"width": 4, "depth": 2},
        "networks.delta_net": lambda: sizes,
        "networks.tied": lambda: {"network": w.network},
        "networks.untied": lambda: {"network": w.network},
        "networks.scheme": lambda: {"name": "he_normal", "fan_in": 4, "fan_out": 4},
        "networks.network_to_json": lambda: {"network": w.network},
        "networks.network_from_json": lambda: {"described": vg.networks.network_to_json(w.network)},
        "Network": lambda: {"stem": None, "stages": w.network.stages, "head": None, "input_shape": (4,)},
        "networks.Stage": lambda: {"spec": w.spec, "depth": 2},
        "networks.Parameters.astype": lambda: {"self": w.parameters, "dtype": "float32"},
        "Activation": lambda: {"name": "mine", "phi": phi},
        "Activation.__call__": lambda: {"self": vg.activations.get("tanh"), "h": w.x},
        "Activation.derivative": lambda: {"self": vg.activations.get("tanh"), "h": w.x},
        "Scales": lambda: {"scales": {"sigma_w": 1.0}},
        "init": lambda: {"key": w.key, "network": w.network},
        "forward": lambda: pass_,
        "absorb_scales": lambda: {"parameters": w.parameters, "scales": w.scales},
        "networks.lsuv": lambda: {"parameters": w.parameters, "scales": w.scales, "xs": w.xs},
        "networks.calibrate": lambda: {"parameters": w.parameters, "scales": w.scales, "xs": w.xs},
        "activations.leaky_relu": lambda: {"slope": 0.1},
        "activations.registered": lambda: {"activation": vg.activations.get("tanh")},
        "activations.get": lambda: {"activation": "tanh"},
        # blocks
        "blocks.Activate": lambda: {"activation": "tanh", "rngs": rngs},
        "blocks.Attention": lambda: {"width": 4, "heads": 2, "rngs": rngs},
        "blocks.DynamicTanh": lambda: {"kind": "dyt", "features": 4, "rngs": rngs},
        "blocks.Embedding": lambda: {"vocabulary": 5, "width": 4, "rngs": rngs},
        "blocks.Experts": lambda: {"expert": w.spec, "width": 4, "experts": 2, "chosen": 1, "rngs": rngs},
        "blocks.Gain": lambda: {"name": "gain", "features": 4, "rngs": rngs},
        "blocks.Parallel": lambda: {"how": "sum", "rngs": rngs, "parts": {"first": w.spec, "second": w.spec}},
        "blocks.Positions": lambda: {"tokens": 3, "width": 4, "kind": "learned", "rngs": rngs},
        "blocks.Unembedding": lambda: {"vocabulary": 5, "width": 4, "rngs": rngs},
        "blocks.OnFirst": lambda: {"branch": w.spec, "rngs": rngs},
        "blocks.ValueResidual": lambda: {"branch": w.attending, "first": True, "rngs": rngs},
        "blocks.Chain": lambda: {"rngs": rngs, "parts": {"first": w.spec}},
        "blocks.Conv": lambda: {"channels_in": 2, "channels_out": 2, "rngs": rngs, "affine": {"activation": "tanh"}},
        "blocks.Dense": lambda: {"fan_in": 4, "fan_out": 4, "rngs": rngs, "affine": {"activation": "tanh"}},
        "blocks.Dropout": lambda: {"shape": (4,), "rngs": rngs},
        "blocks.GRUCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs, "options": {"kernel_init": "orthogonal"}},
        "blocks.LSTMCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs},
        "blocks.MinimalCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs},
        "blocks.RNNCell": lambda: {"width": 4, "inputs": 4, "options": {"rngs": rngs, "kernel_init": "orthogonal"}},
        "blocks.DiagonalCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs},
        "blocks.SelectiveCell": lambda: {"width": 4, "rngs": rngs},
        "blocks.MinGRUCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs},
        "blocks.MinLSTMCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs},
        "blocks.RGLRUCell": lambda: {"width": 4, "rngs": rngs, "gated": {"bias_init": "zero"}},
        "blocks.MatrixCell": lambda: {"width": 4, "inputs": 4, "rngs": rngs},
        "blocks.Equilibrium": lambda: {"cell": vg.blocks.spec(vg.blocks.RNNCell, 4, 4), "rngs": rngs},
        "blocks.Flat": lambda: {"rngs": rngs},
        "blocks.Norm": lambda: {"kind": "layer", "features": 4, "rngs": rngs},
        "blocks.Part": lambda: {"index": 0, "rngs": rngs},
        "blocks.Pool": lambda: {"axes": 1, "rngs": rngs},
        "blocks.Residual": lambda: {"branch": w.spec, "rngs": rngs},
        "blocks.Start": lambda: {"shape": (4,), "rngs": rngs},
        "blocks.Spec": lambda: {"block": vg.blocks.Dense, "arguments": (4, 4)},
        "blocks.Spec.build": lambda: {"self": w.spec, "rngs": rngs},
        "blocks.Spec.nested": lambda: {"self": w.spec},
        "blocks.Scale.check": lambda: {"self": vg.blocks.Scale(1.0), "name": "skip", "value": 1.0},
        "blocks.spec": lambda: {"block": vg.blocks.Norm, "arguments": ("layer", 4), "options": {"epsilon": 0.1}},
        # measurements of one network
        "gradient_flow": lambda: pass_ | {"y": 1},
        "naive_reading": lambda: pass_ | {"y": 1},
        "push_forward": lambda: pass_,
        "pull_back": lambda: pass_,
        "gain_matrix": lambda: pass_,
        "states": lambda: pass_,
        "correlation": lambda: {"parameters": w.parameters, "scales": w.scales, "x1": w.x, "x2": -w.x},
        "log_singular_values": lambda: pass_,
        "lyapunov_exponents": lambda: pass_,
        "log_frobenius": lambda: pass_,
        "measure.log_determinant": lambda: pass_,
        "measure.layer_singular_values": lambda: pass_,
        "measure.token_correlation": lambda: dict(zip(("parameters", "scales", "x"), w.tokens, strict=True)),
        # the sweep and its result
        "sweep": lambda: {
            "network": w.network, "inputs": (w.x,), "key": w.key, "seeds": 1, "axes": {"sigma_w": w.grid},
        },
        "gains": dict,
        "gradients": dict,
        "naive_readings": dict,
        "correlations": dict,
        "spectra": dict,
        "lyapunov": dict,
        "frobenius": dict,
        "trainings": lambda: {"data": w.examples},
        "first_steps": dict,
        "measurement": lambda: {"function": measured, "dims": {"size": ()}},
        "ensembles.Case": lambda: {"network": w.network},
        "ensembles.Remedy": lambda: {"network": w.network},
        "ensembles.remedy_examples": dict,
        "ensembles.remedy_table": lambda: {"result": w.steps},
        "remedies": dict,
        "collect": lambda: {"folder": w.run},
        "status": lambda: {"folder": w.run},
        "ensembles.open_dataset": lambda: {"folder": w.run},
        "load": lambda: {"path": w.folder / "result.npz"},
        "compare": lambda: {"result": w.sweep},
        "Result": lambda: {name: getattr(w.sweep, name) for name in ("measure", "axes", "arrays", "dims")},
        "Result.mean": lambda: {"self": w.sweep, "name": "log_gain"},
        "Result.error": lambda: {"self": w.sweep, "name": "log_gain"},
        "Result.annealed": lambda: {"self": w.sweep, "name": "log_gain"},
        "Result.rate": lambda: {"self": w.sweep},
        "Result.edge": lambda: {"self": w.sweep},
        "Result.naive_lost": lambda: {"self": w.sweep},
        "Result.to_xarray": lambda: {"self": w.sweep},
        "Result.save": lambda: {"self": w.sweep, "path": w.folder / "saved.npz"},
        # any other model
        "diagnose": lambda: {"model": w.any_model, "batch": w.xs},
        "assert_trainable": lambda: {"model": w.any_model, "batch": w.xs},
        "watch": lambda: {"loss": scaled},
        "diagnosis.proposals": lambda: {"model": w.any_model, "batch": w.xs},
        "diagnosis.Proposal": lambda: {
            "name": "nothing", "advice": "leave it", "before": w.diagnosis.verdict, "after": w.diagnosis.verdict
        },
        "diagnosis.Proposal.apply": lambda: {"self": w.proposal, "model": w.any_model},
        "diagnosis.Diagnosis.without": lambda: {"self": w.diagnosis, "name": "layers/1"},
        "diagnosis.Change.plot": lambda: {"self": w.diagnosis.since(w.diagnosis)},
        "diagnosis.Change.layers": lambda: {"self": w.diagnosis.since(w.diagnosis)},
        "diagnosis.Diagnosis.blame": lambda: {"self": w.diagnosis},
        "diagnosis.Diagnosis.plot": lambda: {"self": w.diagnosis},
        "diagnosis.Diagnosis.save": lambda: {"self": w.diagnosis, "path": w.folder / "saved_diagnosis.npz"},
        "diagnosis.Diagnosis.since": lambda: {"self": w.diagnosis, "before": w.diagnosis},
        "diagnosis.Diagnosis.to_html": lambda: {"self": w.diagnosis, "path": w.folder / "report.html"},
        "diagnosis.Diagnosis.to_json": lambda: {"self": w.diagnosis},
        "diagnosis.Diagnosis.to_xarray": lambda: {"self": w.diagnosis},
        "diagnosis.judge": lambda: {"readings": w.readings},
        # training
        "train": lambda: {
            **w.student, "num_steps": 2, "batch_size": 2,
            "snapshots": vg.training.SnapshotConfig(steps=(), gradients=False),
        },
        "training.train_continuously": lambda: {
            **w.student, "times": [0.0, 0.1], "max_steps": 100,
        },
        "training.ContinuousTraining.at": lambda: {"self": w.flow, "i": 0},
        "training.SnapshotConfig": dict,
        "training.SnapshotConfig.steps_of": lambda: {"self": vg.training.SnapshotConfig(), "num_steps": 40},
        "training.best": lambda: {"result": w.trained},
        "training.box_dimension": lambda: {"converged": np.arange(1600).reshape(40, 40) % 7 < 3},
        "training.zoom": lambda: {"result": w.trained, "factor": 2.0},
        "trainable_depth": lambda: {"result": w.trained_deep},
        "coordinate_check": lambda: {
            "make_network": lambda width, depth: vg.mlp(width=width, depth=depth, inputs=4, outputs=3),
            "data": w.examples, "widths": [4], "depths": [1], "steps": 1, "seeds": 1,
        },
        "training.CoordinateCheck.at_places": lambda: {"self": w.checked, "axis": "width"},
        "training.CoordinateCheck.save": lambda: {"self": w.checked, "path": w.folder / "check.npz"},
        "training.CoordinateCheck.load": lambda: {"path": w.checked.save(w.folder / "checked.npz")},
        "training.CoordinateCheck.slopes": lambda: {"self": w.checked, "axis": "width"},
        "teacher": lambda: {"key": w.key, "network": w.network, "inputs": 5},
        # data
        "data.Examples.shaped": lambda: {"self": w.examples, "shape": (2, 2)},
        "data.Examples.one_hot": lambda: {"self": w.examples},
        "data.batches": lambda: {"key": w.key, "examples": 6, "batch_size": 2, "num_steps": 4},
        "data.digits": dict,
        "data.idx": lambda: {
            "images_path": w.folder / "train-images-idx3-ubyte.gz",
            "labels_path": w.folder / "train-labels-idx1-ubyte.gz",
        },
        "data.karate_club": dict,
        "data.mnist": lambda: {"folder": w.folder},
        "data.read_idx": lambda: {"path": w.folder / "train-images-idx3-ubyte.gz"},
        "data.sphere": lambda: {"key": w.key, "images": 3, "inputs": 4},
        "data.split": lambda: {"key": w.key, "examples": w.examples},
        "data.standardize": lambda: {"inputs": w.xs},
        # theory
        "theory.band": lambda: at | {"widths": (8, 8, 8)},
        "theory.correlated_expectation": lambda: {"f": "tanh", "q1": 1.0, "q2": 1.0, "c": 0.5},
        "theory.critical": lambda: {"activation": "tanh", "sigma_b": 0.1},
        "theory.expectation": lambda: {"f": "tanh", "q": 1.0},
        "theory.fourth_moment": lambda: {"widths": (8, 8)},
        "theory.log_gain_moments": lambda: {"activation": "relu", "width": 8},
        "theory.log_normal_beta": lambda: {"widths": (8, 8)},
        "theory.mean_field": lambda: at,
        "theory.moments": lambda: {"activation": "tanh", "q": 1.0},
        "theory.propagate": lambda: at | {"depth": 3},
        "theory.tables": lambda: {"activation": "linear", "widths": (8,)},
        "theory.transformer.propagate": lambda: {
            "activation": "relu", "depth": 2, "tokens": 3, "scales": {"sigma_w": 1.0},
        },
        "theory.attention.deep_norm": lambda: {"layers": 4},
        "theory.attention.deep_norm_encoder_decoder": lambda: {"encoder_layers": 4, "decoder_layers": 4},
        "theory.attention.uniform_attention_correlation": lambda: {"tokens": 4, "depth": 4},
        "theory.free_probability.spectrum_variance": lambda: {"activation": "tanh", "q": 1.0, "depth": 4},
        "theory.free_probability.q_for_variance": lambda: {"activation": "tanh", "depth": 4, "variance": 0.5},
        "theory.free_probability.log_largest_singular_value": lambda: {"activation": "tanh", "q": 1.0, "depth": 4},
        "theory.free_probability.spectral_density": lambda: {
            "activation": "tanh", "q": 1.0, "depth": 4, "points": 20,
        },
        "theory.free_probability.universal_density": lambda: {"kind": "smooth", "variance": 0.5, "points": 20},
        "theory.linear_dynamics.mode_strength": lambda: {"t": [0.0, 1.0], "s": 1.0, "u0": 0.1},
        "theory.linear_dynamics.learning_time": lambda: {"fraction": 0.5, "s": 1.0, "u0": 0.1},
        "theory.normalization.batch_norm_rate": lambda: {"activation": "relu", "batch": 8},
        "theory.normalization.norm_on_preactivations": lambda: at,
        "theory.normalization.layer_norm_on_activations": lambda: at,
        "theory.normalization.rms_norm_on_activations": lambda: at,
        "theory.normalization.residual_norm_rate": lambda: {"chi": 1.1, "skip": 1.0},
        "theory.linear_recurrences.ring_log_gain": lambda: {"steps": 10.0},
        "theory.linear_recurrences.s4d_log_gain": lambda: {"steps": 10.0},
        "theory.linear_recurrences.mamba_log_gain": lambda: {"steps": 10.0},
        "theory.linear_recurrences.rg_lru_log_gain": lambda: {"steps": 10.0},
        "theory.linear_recurrences.min_gru_rates": lambda: {"sigma": 1.0},
        "theory.linear_recurrences.min_lstm_rates": lambda: {"sigma": 1.0},
        "theory.linear_recurrences.delta_rule_log_gain": lambda: {"steps": 10.0, "rate": 1.0, "size": 4},
        "theory.linear_recurrences.curse_of_memory": lambda: {"factor": 0.9},
        "theory.linear_recurrences.memory_horizon": lambda: {"log_gain": lambda steps: -steps},
        "theory.linear_recurrences.looped_log_gain": lambda: {"loops": 4, "scale": 0.5},
        "theory.linear_recurrences.equilibrium_log_gain": lambda: {"chi": 0.5},
        "theory.recurrent.maximal_lyapunov": lambda: {"activation": "tanh", "gain": 1.5},
        "theory.recurrent.minimal_rnn": lambda: {"sigma_w": 1.5, "sigma_v": 1.0},
        "theory.recurrent.forget_gate": lambda: {"bias": 1.0},
        "theory.recurrent.latch": lambda: {"weight": 1.5},
        "theory.recurrent.orthogonal_log_growth": lambda: {"rho": 1.1, "steps": 5},
        "theory.residual.propagate": lambda: {"activation": "tanh", "depth": 3},
        "theory.residual.stable_scale": lambda: {"depth": 3},
        "theory.residual.fixup_scale": lambda: {"depth": 3, "layers": 2},
        "theory.shaping.c_map": lambda: {"activation": "tanh", "c": 0.5},
        "theory.shaping.local_slope": lambda: {"depth": 10},
        "theory.shaping.deep_kernel_shaping": lambda: {"activation": "softplus", "slope": 1.1},
        "theory.shaping.local_curvature": lambda: {"depth": 10},
        "theory.shaping.tailored_smooth": lambda: {"activation": "tanh", "curvature": 0.1},
        "theory.shaping.tailored_leaky_relu": lambda: {"depth": 10, "correlation": 0.8},
        "theory.shaping.leaky_relu_c_map": lambda: {"c": 0.5, "slope": 0.1},
        "theory.graphs.propagate_graph": lambda: {"adjacency": np.eye(3), "depth": 3},
        "theory.graphs.influence": lambda: {"adjacency": np.eye(3), "depth": 3},
        "theory.graphs.distances": lambda: {"adjacency": np.eye(3)},
        "theory.streams.propagate_streams": lambda: {"depth": 3},
        "theory.streams.free_maps_log_gain": lambda: {"deviation": 0.1, "depth": 3},
        "theory.streams.sinkhorn": lambda: {"logits": np.eye(3)},
        "theory.streams.second_eigenvalue": lambda: {"logit": 3.0},
        "theory.streams.constrained_log_gain": lambda: {"kept": 0.5, "depth": 3},
        "theory.streams.depth_average_mean_square": lambda: {"depth": 3, "deviation": 0.5},
        "theory.streams.tied_log_gain": lambda: {"depth": 3},
        "theory.streams.flow_gain": lambda: {"time": 1.0},
        # the edge
        "solve": lambda: searched,
        "trace_edge": lambda: searched | {"along": "sigma_b", "values": w.grid},
        "ensembles.Edge.save": lambda: {"self": w.edge, "path": w.folder / "edge.npz"},
        # pictures
        "plots.draw_edge": lambda: {"ax": w.ax, "found": w.edge},
        "plots.edge": lambda: {"found": w.edge},
        "plots.colour_bar": lambda: colour_bar(w),
        "plots.explorer": lambda: {"path": w.folder / "explorer.html", "activations": ("linear",)},
        "plots.depth_profile": lambda: {"curves": {"one": w.xs}},
        "plots.describe": lambda: {"sweep": w.sweep},
        "plots.draw_band": lambda: {"ax": w.ax, "band": vg.theory.Band(w.grid, w.grid)},
        "plots.draw_boundary": lambda: {"ax": w.ax, "result": w.trained},
        "plots.draw_critical_line": lambda: {"ax": w.ax, "sigma_w": w.grid, "sigma_b": w.grid},
        "plots.draw_gain_against_depth": lambda: {
            "ax": w.ax, "x": w.grid, "log_gain": w.xs[:3], "lost": w.xs[:3] > 0,
        },
        "plots.draw_gradient_heat": lambda: {"ax": w.ax, "steps": np.arange(5), "log_gradient": w.xs},
        "plots.draw_losses": lambda: {"ax": w.ax, "losses": {"one": w.grid}},
        "plots.draw_profile": lambda: {
            "ax": w.ax, "log_gradient": w.xs, "lost": w.xs > 5, "colour": "k", "name": "one",
        },
        "plots.draw_rate": lambda: {"ax": w.ax, "x": np.arange(5.0), "y": np.arange(4.0), "rate": w.xs},
        "plots.draw_trainability": lambda: {
            "ax": w.ax, "variance": w.grid, "depths": np.array([10, 20]), "accuracy": np.ones((2, 3)) / 2,
        },
        "plots.draw_states": lambda: {"ax": w.ax, "values": w.x, "colour": "k"},
        "plots.gradient_path": lambda: {"log_rms": w.x, "log_cotangent": w.x, "names": list("abcd")},
        "plots.factor": lambda: {"log": 1.0},
        "plots.factor_ticks": lambda: {"reach": 1.0},
        "plots.label": lambda: {"name": "sigma_w"},
        "plots.name_edges": lambda: {"ax": (ax := w.ax), "theory": ax.plot([0, 1], [0, 1])[0]},
        "plots.phase_map": lambda: {"sweep": w.sweep},
        "plots.power_of_ten": lambda: {"log": 1.0},
        "plots.powers_of_ten": lambda: {"low": -5.0, "high": 5.0},
        "plots.remedies": lambda: {"found": (w.steps,)},
        "plots.save": lambda: {"figure": Figure(), "path": w.folder / "figure", "suffixes": (".png",)},
        "plots.spectrum": lambda: {"found": w.spectrum},
        "plots.trainability_boundary": lambda: {"results": (w.trained,)},
        "plots.trainability_map": lambda: {"result": w.trained_deep},
        "plots.coordinate_check": lambda: {"checks": {"one": w.checked}},
        "plots.training": lambda: {"runs": {"one": w.training}},
    }  # fmt: skip
    return table[name]()


def colour_bar(w: World) -> dict[str, Any]:
    ax = w.ax
    return {
        "figure": ax.figure,
        "ax": ax,
        "mesh": ax.pcolormesh(w.xs),
        "text": "growth",
        "ticks": w.grid,
        "format": vg.plots.factor,
    }


def bound(function: Callable[..., Any], given: dict[str, Any]) -> inspect.BoundArguments:
    """A call from arguments by name, those of ``*args`` and ``**kwargs`` too."""
    signature = inspect.signature(function)
    given = ({"self": None} if "self" in signature.parameters else {}) | given
    call = signature.bind_partial()
    call.arguments = {name: given[name] for name in signature.parameters if name in given}
    return call


@functools.cache
def instances() -> dict[str, Any]:
    """One object of every public class, and of what else public functions make; blocks apart, which are Flax's."""
    w, theory = world(), vg.theory
    pass_ = w.parameters, w.scales, w.x
    flow = vg.gradient_flow(*pass_, 1)
    return {
        "Network": w.network,
        "Activation": vg.activations.get("tanh"),
        "Activation of a user's": vg.activations.get(phi),
        "Activation with a slope": vg.activations.leaky_relu(0.3),
        "Scales": vg.Scales(sigma_w=[1.0, 2.0, 3.0], sigma_b=0.1),
        "Result": w.sweep,
        "activations.Facts": vg.activations.get("tanh").facts,
        "blocks.Scale": vg.blocks.Scale(1.0),
        "blocks.Spec": w.spec,
        "data.Examples": w.examples,
        "diagnosis.Change": w.diagnosis.since(w.diagnosis),
        "diagnosis.Diagnosis": w.diagnosis,
        "diagnosis.Frontier": vg.diagnosis.Frontier("head", 0.0, -1.0),
        "diagnosis.Path": w.readings.paths[0],
        "diagnosis.Proposal": w.proposal,
        "diagnosis.Readings": w.readings,
        "diagnosis.Row": w.readings.sites[0],
        "diagnosis.Verdict": w.diagnosis.verdict,
        "ensembles.Case": vg.ensembles.Case(w.network, {"sigma_w": 1.0}),
        "ensembles.Edge": w.edge,
        "ensembles.Root": vg.ensembles.Root(
            "sigma_w", 1.0, 0.1, 0.0, w.grid, 1.0, (0.5, 2.0), 16, "", float("nan"), "theory has none"
        ),
        "ensembles.Remedy": vg.ensembles.Remedy(w.network),
        "measure.Correlation": vg.correlation(*pass_, -w.x),
        "measure.Frobenius": vg.log_frobenius(*pass_),
        "measure.GradientFlow": flow,
        "measure.Lyapunov": vg.lyapunov_exponents(*pass_),
        "measure.Pull": vg.pull_back(*pass_),
        "measure.Push": vg.push_forward(*pass_),
        "measure.Spectrum": w.spectrum,
        "measure.States": vg.states(*pass_),
        "training.CoordinateCheck": w.checked,
        "training.Parametrization": vg.training.Parametrization({"sigma_out": 0.5}, phi),
        "theory.linear_recurrences.GateRates": theory.linear_recurrences.min_gru_rates(1.0),
        "theory.linear_recurrences.Memory": theory.linear_recurrences.curse_of_memory(0.9),
        "theory.transformer.TransformerPropagation": theory.transformer.propagate("relu", 2, tokens=3),
        "networks.Parameters": w.parameters,
        "networks.Stage": w.network.stages[0],
        "networks.Stream": vg.init(w.key, w.network, stream=True).stages[0],
        "training.BoxCount": vg.training.box_dimension(np.arange(1600).reshape(40, 40) % 7 < 3),
        "training.ContinuousTraining": w.flow,
        "training.SnapshotConfig": vg.training.SnapshotConfig((1, 2)),
        "training.Snapshots": w.training.snapshots,
        "training.Training": w.training,
        "theory.Band": theory.band("tanh", (8, 8), 1.5, 0.1),
        "theory.Critical": theory.critical("tanh", [0.1, 0.2]),
        "theory.FixedPoint": theory.FixedPoint(1.0, 1.0, 0.5, True),
        "theory.LogMoments": theory.log_gain_moments("relu", 8),
        "theory.MeanField": theory.mean_field("tanh", [1.0, 1.5], 0.1),
        "theory.Moments": theory.moments("tanh", [1.0, 2.0]),
        "theory.Propagation": theory.propagate("tanh", 1.5, 0.1, 3),
        "theory.Tables": theory.tables("linear", (8,)),
        "theory.attention.DeepNorm": theory.attention.deep_norm(4),
        "theory.free_probability.SpectralDensity": theory.free_probability.spectral_density("relu", 1.0, 3, points=20),
        "theory.normalization.NormPoint": theory.normalization.norm_on_preactivations("tanh", 1.5, 0.1),
        "theory.recurrent.Gate": theory.recurrent.forget_gate(1.0),
        "theory.recurrent.Latch": theory.recurrent.latch(1.5),
        "theory.recurrent.MaximalLyapunov": theory.recurrent.maximal_lyapunov("tanh", [1.5]),
        "theory.recurrent.MinimalRNN": theory.recurrent.MinimalRNN(1.0, 1.0, 1.0),
        "theory.residual.ResidualPropagation": theory.residual.propagate("tanh", 3),
        "theory.graphs.GraphPropagation": theory.graphs.propagate_graph(np.eye(3), 3),
        "theory.streams.Balanced": theory.streams.sinkhorn(np.eye(3)),
        "theory.streams.StreamPropagation": theory.streams.propagate_streams(3),
        "theory.shaping.Shaped": theory.shaping.tailored_leaky_relu(5, 0.5),
        "comparison": w.comparison,
        "norm": vg.norm("layer"),
        "branch": vg.networks.branch("pre"),
        "measurement": vg.measurement(measured, {"size": ()}),
        **{
            f"measure {make.__name__}": make()
            for make in (
                vg.gains,
                vg.gradients,
                vg.naive_readings,
                vg.correlations,
                vg.spectra,
                vg.lyapunov,
                vg.frobenius,
                vg.first_steps,
            )
        },
        "measure trainings": vg.trainings(w.examples),
    }
