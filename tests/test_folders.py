"""A folder never answers for another run: whatever a call depends on is changed, one thing at a time, by another of the
same name. And it survives: any damage is done again or refused in one sentence, and never changes a bit of a result."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vgjax as vg
from vgjax.blocks import spec
from vgjax.ensembles import job, runner
from vgjax.ensembles import sweep as sweeps
from vgjax.ensembles.folder import Checkpoint
from vgjax.networks import sequential

Given = dict[str, Any]
WIDTH = 4
LARGE = np.ones(2000, np.float32)  # a text shows only its ends
X = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
DATA = np.random.default_rng(0).normal(size=(12, WIDTH)).astype(np.float32)


def changed(a: np.ndarray) -> np.ndarray:
    """In one number in the middle."""
    other = a.copy()
    other.flat[a.size // 2] += 1
    return other


# --- what a call is given, and another of the same name -------------------------------------------------------------


def named(factor: float) -> Callable[[Any], Any]:
    def phi(h: Any) -> Any:
        return jnp.tanh(h) * factor

    return phi


def reads_global(value: float) -> Callable[[Any], Any]:
    """Of one source, as a script that was edited in another line."""
    namespace = {"jnp": jnp, "NUMBER": value}
    exec("def reads(h):\n    return jnp.tanh(h * NUMBER)", namespace)
    return namespace["reads"]  # type: ignore[return-value]


def has_default(value: float) -> Callable[[Any], Any]:
    def phi(h: Any, slope: float = value) -> Any:
        return jnp.tanh(h) * slope

    return phi


def reads_array(array: np.ndarray) -> Callable[[Any], Any]:
    return lambda h: jnp.tanh(h) * jnp.asarray(array).mean()


def block_class(sign: float, power: int = 1) -> type[nnx.Module]:
    """A user's block: of one name, whatever it computes and however it is drawn."""

    class Own(nnx.Module):
        def __init__(self, phi: Any, rngs: nnx.Rngs):
            self.phi = phi
            self.kernel = nnx.Param(jax.random.normal(rngs.params(), (WIDTH, WIDTH), "float32") ** power)

        def __call__(self, h: Any) -> Any:
            return h + sign * self.phi(self.kernel[...] @ h)

    return Own


def transformed(power: int) -> np.ndarray:
    """Data behind a transform of one name."""
    return (lambda x: x**power)(DATA)


def direction(scale: float) -> Callable[..., dict[str, Any]]:
    def out(parameters: Any, scales: Any, x: Any) -> dict[str, Any]:
        return {"out": vg.forward(parameters, scales, x) * scale}

    return out


def optimizer(most: float) -> Callable[[Any], optax.GradientTransformation]:
    return lambda rate: optax.chain(optax.clip_by_global_norm(most), optax.sgd(rate))


def schedule(power: float) -> Callable[[int], optax.Schedule]:
    return lambda steps: lambda count: (1 - count / steps) ** power


BASE: Given = {
    "lambda": lambda h: jnp.tanh(h),
    "function": named(1.0),
    "global": reads_global(1.0),
    "default": has_default(1.0),
    "array": reads_array(LARGE),
    "block": block_class(1.0),
    "kernel_init": "gaussian",
    "depth": 2,
    "key": jax.random.key(4),
    "seeds": 1,
    "axes": {"sigma_w": [0.5, 1.5]},
    "sigma_b": 0.0,
    "x": X,
    "y": 1,
    "data": vg.data.Examples(transformed(1), np.arange(12) % WIDTH),
    "test": vg.data.Examples(transformed(2), np.arange(12) % WIDTH),
    "steps": 3,
    "batch_size": 4,
    "snapshots": vg.training.SnapshotConfig((), num_eval=8),
    "optimizer": optimizer(1.0),
    "schedule": schedule(1.0),
    "finished": optax.adam(optax.cosine_decay_schedule(0.1, 3)),
    "of_training": {},
    "own": direction(1.0),
    "option": None,
}
"""What the calls are made of."""

OTHERS: dict[str, Given] = {
    "another lambda": {"lambda": lambda h: jnp.tanh(h) * 1.5},
    "another function of the name": {"function": named(1.0000001)},
    "a global it reads": {"global": reads_global(1.5)},
    "a default of it": {"default": has_default(1.5)},
    "an array in its closure": {"array": reads_array(changed(LARGE))},
    "another block of the name": {"block": block_class(-1.0)},
    "another law in it": {"block": block_class(1.0, power=3)},
    "another law by name": {"kernel_init": "orthogonal"},
    "more layers": {"depth": 3},
    "key": {"key": jax.random.key(5)},
    "another generator": {"key": jax.random.key(4, impl="rbg")},
    "seeds": {"seeds": 2},
    "the last bit of a scale": {"axes": {"sigma_w": [0.5, np.nextafter(np.float32(1.5), np.float32(2))]}},
    "the order of an axis": {"axes": {"sigma_w": [1.5, 0.5]}},
    "another axis": {"axes": {"sigma_b": [0.5, 1.5]}, "sigma_b": None},
    "a fixed scale": {"sigma_b": 0.1},
    "the sign of a zero": {"sigma_b": -0.0},
}
"""Changes of what every call depends on."""

INPUT: dict[str, Given] = {"the last bit of an input": {"x": np.nextafter(X, 3)}, "its sign": {"x": -X}}
TARGET: dict[str, Given] = {**INPUT, "target": {"y": 2}, "loss": {"y": X * 0.5}}
TRAINING: dict[str, Given] = {
    "data behind another transform": {"data": vg.data.Examples(transformed(3), np.arange(12) % WIDTH)},
    "labels": {"data": vg.data.Examples(DATA, np.arange(12) % 3)},
    "labels of another loss": {
        name: vg.data.Examples(transformed(power), DATA) for name, power in (("data", 1), ("test", 2))
    },
    "test": {"test": vg.data.Examples(transformed(3), np.arange(12) % WIDTH)},
    "no test": {"test": None},
    "steps": {"steps": 4},
    "batch": {"batch_size": 3},
    "snapshots": {"snapshots": vg.training.SnapshotConfig((), num_eval=7)},
    "precision": {"of_training": {"dtype": "float64"}},
}

Made = tuple[tuple[Any, ...], vg.ensembles.Measurement]


def training(given: Given, how: Any, **options: Any) -> Made:
    data, test, options = given["data"], given["test"], {**options, **given["of_training"]}
    about = {"batch_size": given["batch_size"], "snapshots": given["snapshots"]}
    return (), vg.trainings(data, how, given["steps"], test=test, **about, **options)


MEASURES: dict[str, tuple[Callable[[Given], Made], dict[str, Given]]] = {
    "gains": (lambda g: ((g["x"],), vg.gains(g["option"] or 1)), {**INPUT, "probes": {"option": 2}}),
    "streamed gains": (lambda g: ((g["x"],), vg.gains(stream=not g["option"])), {"stream": {"option": True}}),
    "gradients": (lambda g: ((g["x"], g["y"]), vg.gradients()), TARGET),
    "naive_readings": (lambda g: ((g["x"], g["y"]), vg.naive_readings()), TARGET),
    "correlations": (lambda g: ((X[::-1], g["x"]), vg.correlations()), INPUT),
    "spectra": (
        lambda g: ((g["x"],), vg.spectra(g["option"] or (1, 3))),
        {**INPUT, "depths": {"option": (0, 2)}},
    ),
    "lyapunov": (lambda g: ((g["x"],), vg.lyapunov(g["option"] or 1)), {**INPUT, "count": {"option": 2}}),
    "frobenius": (lambda g: ((g["x"],), vg.frobenius(g["option"] or 2)), {**INPUT, "probes": {"option": 3}}),
    "first_steps": (
        lambda g: ((g["x"], g["y"]), vg.first_steps(g["option"] or 0.1)),
        {**TARGET, "learning_rate": {"option": 0.2}},
    ),
    "trainings": (
        lambda g: training(g, g["optimizer"], schedule=g["schedule"]),
        {**TRAINING, "optimizer": {"optimizer": optimizer(1.0000001)}, "schedule": {"schedule": schedule(1.0000001)}},
    ),
    "trainings by a finished optimizer": (
        lambda g: training(g, g["finished"]),
        {
            "rate": {"finished": optax.adam(optax.cosine_decay_schedule(0.2, 3))},
            "schedule": {"finished": optax.adam(optax.cosine_decay_schedule(0.1, 4))},
            "momentum": {"finished": optax.adam(optax.cosine_decay_schedule(0.1, 3), b1=0.8)},
        },
    ),
    "measurement": (
        lambda g: ((g["x"],), vg.measurement(g["own"], {"out": ("unit",)})),
        {**INPUT, "function": {"own": direction(1.0000001)}},
    ),
}
"""How each measurement is asked for, with its inputs; and what it depends on beside."""


@functools.cache
def summed(*functions: Any) -> Any:
    """One activation of several; the same one while none of them changes, which saves half of the time."""
    return lambda h: sum(function(h) for function in functions)


def swept(measure: str, folder: Path | None = None, **given: Any) -> vg.Result:
    """One call of everything that a user can bring."""
    given = {**BASE, **given}
    inputs, measured = MEASURES[measure][0](given)

    phi = summed(*(given[name] for name in ("lambda", "function", "global", "default", "array")))
    layers = [vg.dense(WIDTH, WIDTH, phi, kernel_init=given["kernel_init"])] * given["depth"]
    network = sequential(*layers, spec(given["block"], phi), input_shape=WIDTH)
    fixed = {} if given["sigma_b"] is None else {"sigma_b": given["sigma_b"]}
    about = {name: given[name] for name in ("key", "seeds")}
    where = None if folder is None else str(folder)
    return vg.sweep(network, *inputs, measure=measured, folder=where, **about, **fixed, **given["axes"])


# --- what is refused, and what goes on ------------------------------------------------------------------------------


def bits(result: vg.Result) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in result.arrays.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def another_switch(name: str) -> Iterator[None]:
    with {"x64": jax.enable_x64(True), "partitionable": jax.threefry_partitionable(False)}[name]:
        yield


QUICK = ("gains", "gradients", "spectra", "trainings", "trainings by a finished optimizer", "measurement")


@pytest.mark.parametrize(
    "measure", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MEASURES]
)
def test_a_folder_refuses_a_call_in_which_anything_is_another_of_the_same_name(
    tmp_path: Path, pieces: list[int], measure: str
) -> None:
    """One folder for each measurement; every change of the call, one at a time, in a sentence that says what it is."""
    whole = bits(swept(measure, tmp_path))
    before, answered = contents(tmp_path), {}
    changes = {**OTHERS, **MEASURES[measure][1]}
    for name, change in [*changes.items(), ("x64", {}), ("partitionable", {})]:
        switched = contextlib.nullcontext() if change else another_switch(name)
        try:
            with switched:
                found = bits(swept(measure, tmp_path, **change))
                if found != bits(swept(measure, **change)):
                    answered[name] = "an answer"
        except ValueError as error:
            if " got one that differs in " not in str(error):
                answered[name] = str(error)
    assert answered == {}
    pieces.clear()
    assert contents(tmp_path) == before
    same = {
        "lambda": lambda h: jnp.tanh(h),
        "function": named(1.0),
        "global": reads_global(1.0),
        "default": has_default(1.0),
        "array": reads_array(LARGE.copy()),
        "x": jnp.asarray(X),
        "optimizer": optimizer(1.0),
        "schedule": schedule(1.0),
        "own": direction(1.0),
        "finished": optax.adam(optax.cosine_decay_schedule(0.1, 3)),
    }
    assert bits(swept(measure, tmp_path, **same)) == whole  # written anew, as in another process
    assert not pieces


def test_what_a_user_s_code_does_on_the_host_is_done_again(tmp_path: Path, pieces: list[int]) -> None:
    """It has no fingerprint: the folder keeps what the program gave."""

    def measure(factor: float) -> vg.ensembles.Measurement:
        class Host(type(vg.gains())):  # type: ignore[misc]
            def finish(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
                assert where in (" of seed 0", " of seed 1")
                return {**arrays, "log_gain": factor * arrays["log_gain"]}

        return Host(1, False)

    net, run = vg.mlp(width=4, depth=3, inputs=4), {"key": BASE["key"], "seeds": 2, "sigma_w": [0.5, 1.5], "memory": 1}
    for factor in (1.0, 2.0):
        kept = vg.sweep(net, X, measure=measure(factor), folder=str(tmp_path), **run)
        assert bits(kept) == bits(vg.sweep(net, X, measure=measure(factor), **run))
    assert len(pieces) == 3 * 4  # those of the folder once


@pytest.mark.parametrize("workers", [1, 2])
def test_switches_of_jax_hold_in_every_thread_and_for_programs_compiled_before(workers: int) -> None:
    net, run = vg.mlp(width=4, depth=3, inputs=4), {"key": BASE["key"], "seeds": 2, "sigma_w": [0.5, 1.5], "memory": 1}
    streamed = vg.gains(stream=True)  # draws within the program
    before = bits(vg.sweep(net, X, measure=streamed, workers=workers, **run))
    with another_switch("partitionable"):
        found = bits(vg.sweep(net, X, measure=streamed, workers=workers, **run))
        job._program.cache_clear()
        assert bits(vg.sweep(net, X, measure=streamed, workers=1, **run)) == found != before


def test_variables_have_any_name_and_any_dtype_of_jax(tmp_path: Path) -> None:
    """NumPy writes arrays by keyword, and knows no bfloat16."""

    def narrow(parameters: Any, scales: Any, x: Any) -> dict[str, Any]:
        return {"file": jnp.ones(3), "allow_pickle": vg.forward(parameters, scales, x).astype("bfloat16")}

    measure = vg.measurement(narrow, {"file": ("a",), "allow_pickle": ("b",)})
    net, run = vg.mlp(width=4, depth=3, inputs=4), {"key": BASE["key"], "seeds": 1, "measure": measure}
    first, again = (vg.sweep(net, X, folder=str(tmp_path / "run"), **run) for _ in range(2))
    assert bits(first) == bits(again)
    assert again.allow_pickle.dtype == np.float32
    assert bits(vg.load(again.save(tmp_path / "a.npz"))) == bits(first)


SCRIPT = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
if sys.argv[2] == "again":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import vgjax as vg
from vgjax.ensembles.job import Job
made, piece = [], Job.piece
Job.piece = lambda self, *rest: made.append(rest) or piece(self, *rest)
junk = [bytearray(i) for i in range(int(sys.argv[3]))]  # so that everything lies elsewhere
numbers = np.linspace(1, 2, 3000)
def out(parameters, scales, x):
    return {"out": vg.forward(parameters, scales, x) * jnp.asarray(numbers, jnp.float32).mean()}
acts = {"a": lambda h: jnp.tanh(h) + h, "b": lambda h: jnp.tanh(h) + 2 * h}
nets = {name: vg.mlp(width=4, depth=3, inputs=4, activation=phi) for name, phi in acts.items()}
for i, measure in enumerate([vg.measurement(out, {"out": ("unit",)}), vg.spectra(), vg.gains()]):
    run = {"key": jax.random.key(0), "seeds": 2, "sigma_w": [0.5, 1.5], "memory": int(sys.argv[4])}
    found = vg.sweep(nets, np.ones(4), measure=measure, folder=f"{sys.argv[1]}/{i}", **run)
print(len(made), float(found.log_gain.sum()))
"""


def test_the_same_settings_go_on_in_a_fresh_process_on_other_cores_with_another_budget(tmp_path: Path) -> None:
    said = []
    for how in (["first", "0", "1"], ["again", "12345", "1000000"]):
        environment = {**os.environ, "PYTHONHASHSEED": str(len(said))}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), *how]
        said.append(subprocess.check_output(command, text=True, env=environment).split())
    assert int(said[0][0]) == 3 * 8
    assert int(said[1][0]) == 0
    assert said[0][1] == said[1][1]


# --- damage ---------------------------------------------------------------------------------------------------------


def replaced(value: Any) -> Iterator[Any]:
    """A JSON value with each of its parts, in turn, of another kind or missing."""
    yield from (None, -1, "x", [], {}, [[0, 0]], True)
    if isinstance(value, (dict, list)):
        for at in value if isinstance(value, dict) else range(len(value)):
            lost = value.copy()
            del lost[at]
            yield lost
            for other in replaced(value[at]):
                changed = value.copy()
                changed[at] = other
                yield changed


def damages(path: Path) -> Iterator[Callable[[], Any]]:
    """What may become of a file."""
    good = path.read_bytes()
    for at in {0, 1, len(good) // 3, len(good) // 2, len(good) - 100, len(good) - 33, len(good) - 1}:
        yield lambda at=at: path.write_bytes(good[:at] + bytes([good[at] ^ 64]) + good[at + 1 :])
        yield lambda at=at: path.write_bytes(good[:at])
    yield lambda: path.write_bytes(good + b"0")
    yield lambda: path.write_bytes(b"\xff" * 99)
    yield lambda: path.unlink()
    yield lambda: (path.unlink(), path.mkdir())
    if path.suffix == ".json":
        for other in replaced(json.loads(good)):
            yield lambda other=other: path.write_text(json.dumps(other))
        yield lambda: path.write_text("[" * 100_000)
    else:
        other = next(each for each in path.parent.glob("*.npz") if each != path)
        yield lambda: path.write_bytes(other.read_bytes())
        yield lambda: np.savez(path, **{"variable/loss": np.zeros(7)})


@pytest.mark.parametrize("pieces_left", [4, 2])
def test_whatever_becomes_of_a_folder_s_files_the_result_is_the_same_or_there_is_one_sentence(
    tmp_path: Path, pieces_left: int
) -> None:
    """Of a finished and of a half finished folder; and what was not damaged is kept."""
    settings = {"rate": 0.1, "axes": {"sigma_w": [1.0, 2.0]}, "nothing": None}
    work = {f"{i:04d}": lambda i=i: {"loss": np.arange(3.0) + i} for i in range(4)}

    def go_on() -> dict[str, runner.Arrays]:
        checkpoint = Checkpoint(tmp_path, settings, [[2, 1], [4, 4]])
        kept = {name: piece for name in work if (piece := checkpoint.read(name)) is not None}
        begin = runner.in_this_process(lambda name: work[name]())
        missing = [name for name in work if name not in kept]
        return {**kept, **dict(runner.run(missing, begin, checkpoint.write_or_warn))}

    whole = go_on()
    for name in list(work)[pieces_left:]:
        (tmp_path / f"{name}.npz").unlink()
    kept = contents(tmp_path)
    count = 0
    for damaged in kept:
        path = tmp_path / damaged
        for damage in damages(path):
            damage()
            said = None
            count += 1
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "folder .* takes no more pieces", RuntimeWarning)
                try:
                    found = go_on()
                    np.testing.assert_equal(found, whole)
                except ValueError as error:
                    said = str(error)
            if said is not None:
                assert damaged == "settings.json"
                assert re.fullmatch(r"folder must .*, got .*(settings\.json'( \(.*\))?|with other files)", said)
            for name, content in kept.items():
                assert name == damaged or (tmp_path / name).read_bytes() == content
            if path.is_dir():
                path.rmdir()
            for name in {each.name for each in tmp_path.iterdir()} - {*kept}:
                (tmp_path / name).unlink()
            path.write_bytes(kept[damaged])
    assert count > 100


# --- saved results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".nc"])
def test_a_saved_result_is_read_as_it_was_or_refused_in_one_sentence(tmp_path: Path, suffix: str) -> None:
    net = vg.mlp(width=4, depth=3, inputs=4)
    saved = vg.sweep(net, X, key=BASE["key"], seeds=2, sigma_w=[0.5, 1.5])
    path = saved.save(tmp_path / f"a{suffix}")
    good = path.read_bytes()
    assert bits(vg.load(path)) == bits(saved)
    damaged = [b"", b"no archive", good[: len(good) // 2], good[:-1], good + b"0" * (suffix == ".npz")]
    damaged += [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in range(0, len(good), len(good) // 20)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = vg.load(path)
        except ValueError as error:
            refused += 1
            said = str(error)
        else:
            said = ""
            assert bits(found) == bits(saved)
        assert re.fullmatch(r"(path must hold a .*, got .*)?", said)
    assert refused > 4
    path.unlink()
    with pytest.raises(FileNotFoundError):
        vg.load(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"^path must hold a whole saved result, got "):
        vg.load(path)


def test_a_result_of_a_newer_version_is_refused_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = vg.sweep(vg.mlp(width=4, depth=3, inputs=4), X, key=BASE["key"], seeds=1)
    description = saved._description()
    newer = {**description, "provenance": {**description["provenance"], "vgjax": "9.0"}, "networks": [1, 2]}
    monkeypatch.setattr(vg.Result, "_description", lambda self: newer)
    path = saved.save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"^path must hold a result as version .* writes it, got .* of 9\.0$"):
        vg.load(path)


@pytest.mark.parametrize("given", [{"seeds": 10**30}, {"sigma_w": np.ones(2**14), "sigma_b": np.ones(2**14)}])
def test_a_sweep_that_no_machine_holds_is_refused_before_work(tmp_path: Path, given: Given) -> None:
    given, net = {"seeds": 10**6, **given}, vg.mlp(width=4, depth=3, inputs=4)
    with pytest.raises(
        ValueError,
        match=r"fits into the memory of .* GiB at least$|^seeds must be at most",
    ):
        vg.sweep(net, X, key=BASE["key"], folder=str(tmp_path / "new"), **given)
    assert not (tmp_path / "new").exists()


def test_a_folder_takes_no_sweep_that_its_disk_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "disk_size", lambda folder: 100)
    net, run = vg.mlp(width=4, depth=3, inputs=4), {"key": BASE["key"], "seeds": 10}
    with pytest.raises(ValueError, match=r"^a sweep must give a result that fits into the disk of the folder, .* GiB"):
        vg.sweep(net, X, folder=str(tmp_path / "new"), **run)
    vg.sweep(net, X, **run)
