"""Folders of finished pieces: a run that was stopped goes on bit for bit, and never answers for another one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax.ensembles import fingerprint, runner
from vgjax.ensembles import sweep as sweeps

pytestmark = pytest.mark.usefixtures("strict_promotion")

KEY = jax.random.key(4)
NET = vg.mlp(width=4, depth=3, activation="tanh", inputs=3, outputs=2)
X, OTHER = np.array([0.5, -1.0, 2.0], np.float32), np.array([1.0, 0.3, -0.7], np.float32)
AXES = {"sigma_w": [0.5, 1.0, 1.5]}
RUN = {"key": KEY, "seeds": 2, "memory": 1, **AXES}  # six pieces of one point


def bits(result: vg.Result) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in result.arrays.items()}


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[int], workers: int, stop: type[BaseException]
) -> None:
    whole = bits(vg.sweep(NET, X, **RUN))
    counted, left = sweeps.Job.piece, iter(range(4))

    def stopped(self: Any, *arguments: Any) -> Any:
        if next(left, None) is None:
            raise stop
        return counted(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps.Job, "piece", stopped)
        with pytest.raises(stop):
            vg.sweep(NET, X, folder=str(tmp_path), workers=workers, on_error="raise", **RUN)
    kept = len(list(tmp_path.glob("0*.npz")))
    assert 1 <= kept <= 4  # of two workers, what both had done by then
    pieces.clear()
    assert bits(vg.sweep(NET, X, folder=str(tmp_path), **RUN)) == whole
    assert len(pieces) == 6 - kept
    pieces.clear()
    assert bits(vg.sweep(NET, X, folder=str(tmp_path), **RUN)) == whole
    assert not pieces


def test_damaged_and_lost_pieces_are_made_again(tmp_path: Path, pieces: list[int]) -> None:
    whole = bits(vg.sweep(NET, X, folder=str(tmp_path), **RUN))
    first, second, third, *_ = sorted(tmp_path.glob("0*.npz"))
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(b"")
    third.unlink()
    pieces.clear()
    assert bits(vg.sweep(NET, X, folder=str(tmp_path), **RUN)) == whole
    assert len(pieces) == 3


def test_a_folder_goes_on_with_another_number_of_cores_and_another_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[int]
) -> None:
    """In the pieces that it was begun with, so with the same bits."""
    measure = vg.spectra()  # which takes as many workers as there are cores
    options = {"key": KEY, "seeds": 2, "measure": measure, **AXES}
    for cores in (1, 3):
        monkeypatch.setattr(runner, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        folder = tmp_path / f"begun with {cores}"
        whole = bits(vg.sweep(NET, X, folder=str(folder), memory=1, **options))
        sorted(folder.glob("0*.npz"))[0].unlink()
        pieces.clear()
        monkeypatch.setattr(runner, "cores", lambda: 7)
        monkeypatch.setattr(os, "cpu_count", lambda: 7)
        again = vg.sweep(NET, X, folder=str(folder), **options)
        assert bits(again) == whole
        assert pieces == [0]
        assert again.provenance["chunks"] == [[1, 1]]


def test_networks_may_be_renamed_and_results_keep_every_one_s_own_pieces(tmp_path: Path, pieces: list[int]) -> None:
    deep = vg.mlp(width=4, depth=5, inputs=3)
    whole = vg.sweep([NET, deep], X, folder=str(tmp_path), **RUN)
    assert len(list(tmp_path.glob("0*.npz"))) == 12
    pieces.clear()
    again = vg.sweep({"a": NET, "b": deep}, X, folder=str(tmp_path), **RUN)
    assert bits(again) == bits(whole)
    assert not pieces


def test_a_folder_holds_nothing_else_and_is_refused_if_it_does(tmp_path: Path) -> None:
    vg.sweep(NET, X, folder=str(tmp_path / "new" / "run"), **RUN)
    names = {path.name for path in (tmp_path / "new" / "run").iterdir()}
    assert len(names) == 7
    assert "settings.json" in names
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"^folder must be empty or hold an earlier run, got '.*full' with other files$"
    ):
        vg.sweep(NET, X, folder=str(tmp_path / "full"), **RUN)
    with pytest.raises(ValueError, match=r"^folder must be a folder that can be written to, got '.*notes.txt'"):
        vg.sweep(NET, X, folder=str(tmp_path / "full" / "notes.txt"), **RUN)
    (tmp_path / "new" / "run" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"^folder must hold an earlier run, got an unreadable or damaged '.*json'$"):
        vg.sweep(NET, X, folder=str(tmp_path / "new" / "run"), **RUN)


def test_a_full_disk_is_a_warning_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bits(vg.sweep(NET, X, **RUN))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(RuntimeWarning, match=r"^folder '.*' takes no more pieces \(No space left on device\)") as warned:
        found = vg.sweep(NET, X, folder=str(tmp_path), **RUN)
    assert len(warned) == 1
    assert bits(found) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


# --- another run ----------------------------------------------------------------------------------------------------


def network(phi: Any) -> vg.Network:
    return vg.mlp(width=4, depth=3, activation=phi, inputs=3)


def own(factor: Any) -> vg.ensembles.Measurement:
    """The same code each time, with another value in its closure."""

    def out(parameters: vg.networks.Parameters, scales: vg.Scales, x: jax.Array) -> dict[str, jax.Array]:
        return {"out": vg.forward(parameters, scales, x) * jnp.sum(jnp.asarray(factor, jnp.float32))}

    return vg.measurement(out, {"out": ("unit",)})


def remedy(**options: Any) -> dict[str, vg.ensembles.Remedy]:
    """Two networks, the second as it is told."""
    return {"sick": vg.ensembles.Remedy(NET), "treated": vg.ensembles.Remedy(NET, **options)}


# Large enough that a text shows only its ends.
ARRAY, CHANGED = np.ones(2000), np.where(np.arange(2000) == 1000, 2.0, 1.0)

Call = tuple[tuple[Any, ...], dict[str, Any]]
DIFFERENT: dict[str, tuple[Call, Call, str]] = {
    "key": (((NET, X), {}), ((NET, X), {"key": jax.random.key(5)}), "key"),
    "input": (((NET, X), {}), ((NET, OTHER), {}), "inputs"),
    "grid": (((NET, X), {}), ((NET, X), {"sigma_w": [0.5, 1.0, 1.6]}), "axes"),
    "axes": (((NET, X), {}), ((NET, X), {"sigma_b": [0.1]}), "axes"),
    "fixed scale": (((NET, X), {"sigma_b": 0.1}), ((NET, X), {"sigma_b": 0.2}), "fixed"),
    "seeds": (((NET, X), {}), ((NET, X), {"seeds": 3}), "seeds"),
    "width": (((NET, X), {}), ((vg.mlp(width=5, depth=3, inputs=3, outputs=2), X), {}), "networks"),
    "networks' order": (
        (({"a": NET, "b": network("relu")}, X), {}),
        (({"b": network("relu"), "a": NET}, X), {}),
        "networks",
    ),
    "a network's own scales": (
        (({"a": vg.ensembles.Case(NET, {"sigma_b": 0.1})}, X), {}),
        (({"a": vg.ensembles.Case(NET, {"sigma_b": 0.2})}, X), {}),
        "scales",
    ),
    "probes": (((NET, X), {}), ((NET, X), {"measure": vg.gains(2)}), "options"),
    "measurement": (
        ((NET, X, 1), {"measure": vg.gradients()}),
        ((NET, X, 1), {"measure": vg.naive_readings()}),
        "options",
    ),
    "what only the host reads": (
        ((NET, X, 1), {"measure": vg.first_steps(0.1)}),
        ((NET, X, 1), {"measure": vg.first_steps(0.2)}),
        "options",
    ),
    "a remedy's learning rate": (
        ((remedy(), X, 1), {"measure": vg.first_steps()}),
        ((remedy(learning_rate=0.2), X, 1), {"measure": vg.first_steps()}),
        "options",
    ),
    "a remedy's clipping": (
        ((remedy(clip=1.0), X, 1), {"measure": vg.first_steps()}),
        ((remedy(clip=2.0), X, 1), {"measure": vg.first_steps()}),
        "options",
    ),
    "two lambdas": (
        ((network(lambda h: jnp.tanh(h)), X), {}),
        ((network(lambda h: jnp.tanh(h) * 1.5), X), {}),
        "program",
    ),
    "a number in a closure": (((NET, X), {"measure": own(1.0)}), ((NET, X), {"measure": own(2.0)}), "program"),
    "an array in a closure": (((NET, X), {"measure": own(ARRAY)}), ((NET, X), {"measure": own(CHANGED)}), "program"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_folder_of_another_run_is_refused_by_the_name_of_what_differs(
    tmp_path: Path, name: str, pieces: list[int]
) -> None:
    (first, first_options), (second, second_options), what = DIFFERENT[name]
    vg.sweep(*first, folder=str(tmp_path), **{**RUN, "seeds": 1, "sigma_w": [0.5], **first_options})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pieces.clear()
    message = r"^folder must hold an earlier run of the same settings, got one that differs in ([\w. ]+, )*" + what
    with pytest.raises(ValueError, match=message + r"[\w.]*(, [\w. ]+)*$"):
        vg.sweep(*second, folder=str(tmp_path), **{**RUN, "seeds": 1, "sigma_w": [0.5], **second_options})
    assert not pieces
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_same_function_written_twice_is_the_same_run(tmp_path: Path, pieces: list[int]) -> None:
    """As it is in another process, where no function is the same object and every address differs."""
    for _ in range(2):
        vg.sweep(network(lambda h: jnp.tanh(h) * 1.25), X, measure=own(ARRAY), folder=str(tmp_path), **RUN)
    assert len(pieces) == 6
    assert "0x" not in (tmp_path / "settings.json").read_text()
    assert json.loads((tmp_path / "settings.json").read_text())["seeds"] == 2


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_arrays_differ_in_shape_dtype_and_every_bit() -> None:
    a = np.arange(6, dtype=np.float32)
    others = [a.reshape(2, 3), a.astype(np.float64), np.nextafter(a, 9), -a * 0, a[:5], jax.random.key(0)]
    found = [fingerprint.digest(x) for x in (a, *others)]
    assert len(set(found)) == len(found)
    assert fingerprint.digest(a) == fingerprint.digest(jnp.asarray(a)) == found[0]
    assert fingerprint.digest(a, a) != fingerprint.digest(a)


def programs(of: Callable[[Any], Callable[..., Any]], *values: Any) -> list[str]:
    return [fingerprint.digest_of_program(jax.make_jaxpr(of(v))(jnp.ones(3))) for v in values]


def test_programs_differ_in_constants_wherever_they_are() -> None:
    def of(inner: Callable[[Any, Any], Any]) -> Callable[[Any], Callable[..., Any]]:
        return lambda v: lambda x: inner(x, v)

    large = np.ones(2000, np.float32), np.where(np.arange(2000) == 1000, 2, 1).astype(np.float32)
    inside = [
        of(lambda x, v: x * v.sum()),
        of(lambda x, v: jax.jit(lambda x: x * jnp.asarray(v).sum())(x)),
        of(lambda x, v: jax.lax.scan(lambda c, _: (c * jnp.asarray(v).sum(), None), x, None, length=2)[0]),
        of(lambda x, v: jax.lax.cond(x[0] > 0, lambda x: x * jnp.asarray(v).sum(), lambda x: x, x)),
    ]
    for each in inside:
        first, same, other = programs(each, large[0], large[0].copy(), large[1])
        assert first == same != other


def test_a_program_is_the_same_wherever_its_functions_lie() -> None:
    """JAX prints an address with as many X as it has digits, and breaks lines accordingly."""
    found = set()
    for digits in range(4, 60):

        class Lies:
            def __init__(self, digits: int = digits):
                self.digits = digits

            def __call__(self, *_: Any, **__: Any) -> bool:
                return True

            def __repr__(self) -> str:
                return f"<function at 0x{'7' * self.digits}>"

        program = jax.make_jaxpr(jax.checkpoint(lambda x: jnp.sin(x) + 1 + 2, policy=Lies()))(1.0)
        found.add(fingerprint.digest_of_program(program))
    assert len(found) == 1


def test_what_no_fingerprint_sees_is_refused_and_what_changes_no_result_is_not() -> None:
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    @jax.custom_batching.custom_vmap
    def batched(x: Any) -> Any:
        return x

    @batched.def_vmap
    def _(size: int, batched: Any, x: Any) -> Any:
        return 2 * x, True

    unseen = {
        "pure_callback": lambda x: jax.pure_callback(lambda v: v, shape, x),
        "io_callback": lambda x: jax.experimental.io_callback(lambda v: v, shape, x),
        "custom_vmap_call": batched,
        "ffi_call": jax.ffi.ffi_call("foreign", shape),
    }
    for name, call in unseen.items():
        inside = [call, jax.jit(call), lambda x: jax.lax.cond(x > 0, call, lambda x: x, x)]  # noqa: B023
        for function in inside:
            with pytest.raises(ValueError, match=f"^folder must be left out where .*, got one with {name}$"):
                fingerprint.digest_of_program(jax.make_jaxpr(function)(jnp.float32(1)))

    def loud(x: Any) -> Any:
        jax.debug.print("{}", x)
        jax.debug.callback(lambda _: None, x)
        return x

    fingerprint.digest_of_program(jax.make_jaxpr(loud)(1.0))
