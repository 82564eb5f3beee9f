"""The coordinate check: its numbers against plain optax, its slopes against what parametrizations are made for."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vgjax as vg
from vgjax.training import PARAMETRIZATIONS, CoordinateCheck, Parametrization

RNG = np.random.default_rng(0)
DATA = vg.data.Examples(RNG.normal(size=(40, 6)).astype(np.float32), RNG.integers(0, 3, 40))


def network(width: int, depth: int) -> vg.Network:
    return vg.mlp(
        width=width,
        depth=depth,
        activation="relu",
        inputs=6,
        outputs=3,
        norm="layer",
        residual=vg.networks.branch("pre", layers=1),
    )


# --- the numbers ------------------------------------------------------------------------------------------------------


def plain(parameters: Any, scales: dict[str, float], x: Any) -> list[Any]:
    """States and output of `network` in plain JAX, of ordinary parameters."""

    def norm(p: Any, h: Any) -> Any:
        centred = h - jnp.mean(h)
        return p["scale"] * centred / jnp.sqrt(jnp.mean(centred**2) + 1e-6) + p["bias"]

    states = [x @ parameters["stem"]["kernel"] + parameters["stem"]["bias"]]
    block = parameters["blocks"]["branch"]
    for l in range(len(block["kernel"])):
        p = jax.tree.map(lambda a, l=l: a[l], block)
        f = jax.nn.relu(norm(p["before"]["norm"], states[-1])) @ p["kernel"] + p["bias"]
        states.append(states[-1] + scales["branch"] * f)
    head = parameters["head"]
    a = jax.nn.relu(norm(head["before"]["norm"], states[-1]))
    return [*states, a @ head["kernel"] + head["bias"]]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_sizes_and_changes_are_those_of_optax_with_a_rate_for_every_leaf(optimizer: str) -> None:
    """CompleteP at twice the width and twice the depth, factors written out by hand."""
    width, depth, steps, rate = 8, 8, 2, 0.02
    tolerance = {"sgd": 1e-4, "adam": 2e-3}[optimizer]  # Adam divides by gradients, rounding noise among them
    found = vg.coordinate_check(
        network,
        DATA,
        widths=[4, width],
        depths=[4, depth],
        parametrization="complete_p",
        optimizer=optimizer,
        learning_rate=rate,
        steps=steps,
        seeds=1,
        scales=vg.Scales(sigma_w=1.3),
    )
    for (n, l), logs, picked in (
        ((width, 4), {w: a[1, 0] for w, a in found.along_width.items()}, slice(None)),
        ((4, depth), {w: a[1, 0] for w, a in found.along_depth.items()}, [0, 2, 4, 6, 8, 9]),
    ):
        wider, deeper = n / 4, l / 4
        scales = vg.Scales(sigma_w=1.3, sigma_out=wider**-0.5, branch=1 / deeper)
        drawn = vg.init(jax.random.fold_in(jax.random.key(0), 0), network(n, l))
        ordinary, _ = vg.absorb_scales(drawn, scales)
        leaves = {"stem": ordinary.stem, "blocks": ordinary.stages[0], "head": ordinary.head}
        adaptive = optimizer == "adam"
        kernels = {
            "stem": 1 if adaptive else wider,
            "blocks": 1 / wider if adaptive else deeper,
            "head": 1 / wider,
        }
        vectors = {
            "stem": 1 if adaptive else wider,
            "blocks": 1 if adaptive else wider * deeper,
            "head": 1 if adaptive else wider,
        }

        def factor(path: Any, _: Any, kernels: Any = kernels, vectors: Any = vectors) -> float:
            if [part.key for part in path] == ["head", "bias"]:  # as many as there are outputs, at every width
                return 1
            return (kernels if path[-1].key == "kernel" else vectors)[path[0].key]

        factors = jax.tree_util.tree_map_with_path(factor, leaves)

        def states(leaves: Any, deeper: float = deeper) -> list[Any]:
            return jax.vmap(lambda x: plain(leaves, {"branch": 1 / deeper}, x))(DATA.inputs)

        def loss(leaves: Any, states: Any = states) -> Any:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(states(leaves)[-1], DATA.labels))

        stepper = (optax.adam if adaptive else optax.sgd)(rate)
        memory, seen, gradient = stepper.init(leaves), [leaves], jax.jit(jax.grad(loss))
        for _ in range(steps):
            updates, memory = stepper.update(gradient(seen[-1]), memory)
            seen.append(jax.tree.map(lambda p, u, f: p + f * u, seen[-1], updates, factors))
        at = [states(each) for each in seen]
        for step in range(1, steps + 1):
            for what, other in (("size", None), ("change", 0), ("update", step - 1)):
                apart = at[step] if other is None else [a - b for a, b in zip(at[step], at[other], strict=True)]
                expected = np.array([float(jnp.log(jnp.mean(a**2)) / 2) for a in apart])[picked]
                np.testing.assert_allclose(logs[what][step], expected, atol=tolerance, err_msg=f"{n} {l} {what} {step}")
        assert np.all(logs["change"][0] == -np.inf)


# --- slopes and verdicts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checks() -> dict[str, CoordinateCheck]:
    """Of Adam, on digits."""
    images = vg.data.digits()
    data = vg.data.Examples(np.asarray(images.inputs[:64]), np.asarray(images.labels[:64]))

    def of(width: int, depth: int) -> vg.Network:
        skips = vg.networks.branch("pre", layers=1)
        return vg.mlp(width=width, depth=depth, activation="relu", inputs=64, outputs=10, norm="layer", residual=skips)

    size: dict[str, Any] = {"widths": (32, 512), "depths": (4, 16), "steps": 2, "seeds": 4, "learning_rate": 3e-3}
    return {name: vg.coordinate_check(of, data, parametrization=name, **size) for name in ("standard", "complete_p")}


def test_the_standard_parametrization_moves_with_width_and_depth_and_completep_with_neither(
    checks: dict[str, CoordinateCheck], tmp_path: Path
) -> None:
    """Yang et al. 2022, figure 5; Dey et al. 2025, figure 2: Adam's updates add up over a layer's inputs and over
    layers, so the output moves like width^(1/2) and more, the last state like depth^(1/2) and more."""
    standard, complete = checks["standard"], checks["complete_p"]
    in_width, error = standard.slopes("width")
    assert in_width[-1] - 4 * error[-1] > 0.2  # the output
    in_depth, error = standard.slopes("depth")
    assert in_depth[-2] - 4 * error[-2] > 0.2  # the last state
    for axis in ("width", "depth"):
        slope, error = complete.slopes(axis)
        assert np.all(np.abs(slope[:-1]) < 0.1 + 4 * error[:-1]), axis
        assert np.all(error < 0.1)
    assert "the change grows with it" in standard.verdict.split("\n")[0]
    assert "the change grows with it" in standard.verdict.split("\n")[1]
    assert "the change" not in complete.verdict
    assert str(complete) == complete.verdict
    assert CoordinateCheck.load(complete.save(tmp_path / "check.npz")) == complete
    with pytest.raises(ValueError, match=r"path must end in \.npz, got"):
        complete.save(tmp_path / "check.json")
    figure = vg.plots.coordinate_check(checks)
    assert [ax.get_xlabel() for ax in figure.axes] == ["width", "width", "depth", "depth"]


def test_slopes_are_least_squares_and_words_follow_them() -> None:
    widths, depths, rng = (8, 16, 64), (2,), np.random.default_rng(0)
    x = np.log(np.array(widths))[:, None, None, None]
    noise = 0.01 * rng.normal(size=(3, 5, 1, 4))  # depth 2: no quarters
    logs = np.array([0.5, 0.0, -0.4, 0.0]) * x + noise
    check = CoordinateCheck("mine", widths, depths, {"change": logs}, {"change": np.zeros((1, 5, 1, 6))})
    slope, error = check.slopes("width")
    expected = np.polyfit(np.repeat(np.log(widths), 5), logs[:, :, 0, 0].ravel(), 1)[0]
    assert slope[0] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(slope, [0.5, np.nan, 0.0, np.nan, -0.4, 0.0], atol=0.02)
    assert np.all((error[[0, 2, 4, 5]] > 0) & (error[[0, 2, 4, 5]] < 0.01))
    assert check.verdict.startswith("mine in width (8 to 64): the change grows with it, power +0.5")
    assert np.isnan(check.slopes("depth")[0]).all()
    wide = check._replace(along_width={"change": logs * 0 + 3 * rng.normal(size=(3, 5, 1, 4))})
    assert "undecided" in wide.verdict
    two = check._replace(widths=(8, 16), along_width={"change": logs[:2, :1]})
    assert np.all(np.isinf(two.slopes("width")[1]))  # a line through two points says nothing of its error
    assert "undecided" in two.verdict
    none = check._replace(along_width={"change": np.full((3, 5, 1, 4), -np.inf)})
    assert "zero or not finite" in none.verdict


def test_a_rule_of_ones_own_is_used() -> None:
    """Only the head learns: no state moves, the output does."""
    asked = []

    def rule(width: float, depth: float, adaptive: bool) -> Parametrization:
        asked.append((width, depth, adaptive))
        return Parametrization({"skip": 0.5, "no_such": 3.0}, lambda path, wide: float(path == "head/kernel"))

    found = vg.coordinate_check(network, DATA, widths=[4], depths=[2], parametrization=rule, steps=1, seeds=1)
    assert asked == [(1.0, 1.0, True)]
    change = found.along_width["change"][0, 0, 1]
    assert np.all(change[:-1] == -np.inf)
    assert np.isfinite(change[-1])
    assert set(PARAMETRIZATIONS) == {"standard", "mup", "depth_mup", "complete_p"}


def test_rates_of_the_maximal_update_are_those_of_the_paper() -> None:
    """Yang et al. 2022, table 3 (Adam, SGD), by the axes that grow, of heads of one size, a gate, a router, a table."""
    seen: dict[float, dict[str, tuple[float, float]]] = {}

    def rule(width: float, depth: float, adaptive: bool) -> Parametrization:
        told = [PARAMETRIZATIONS["mup"](width, depth, adaptive) for adaptive in (True, False)]

        def rate(path: str, wide: tuple[bool, ...]) -> float:
            adam, sgd = (each.rate(path, wide) for each in told)
            seen.setdefault(width, {})[path.removeprefix("blocks/0/")] = adam, sgd
            return 0.0

        return Parametrization({}, rate)

    def of(width: int, depth: int) -> vg.Network:
        skips = vg.networks.branch("pre", scheme="rezero")
        looks = vg.networks.attention(positions="learned", qk_norm=1e-6, key_heads=1)
        fed = vg.networks.feed_forward("relu", experts=2, chosen=1)
        size: dict[str, Any] = {"width": width, "heads": width // 2, "depth": depth, "inputs": (3, 4), "outputs": 3}
        return vg.transformer(**size, attention=looks, feed_forward=fed, residual=skips)

    data = vg.data.Examples(RNG.normal(size=(2, 3, 4)).astype(np.float32), np.array([0, 2]))
    vg.coordinate_check(of, data, widths=[4, 12], depths=[1], parametrization=rule, seeds=1, steps=1)
    into, through, out, neither = (1, 3), (1 / 3, 1), (1 / 3, 1 / 3), (1, 1)
    expected = {
        "stem/embedding/kernel": into,
        "stem/embedding/bias": into,
        "stem/positions/table": into,
        "attention/branch/norm/norm/scale": into,
        "attention/branch/attention/query/kernel": through,
        "attention/branch/attention/key/kernel": out,  # one head, as large at every width
        "attention/branch/attention/out/kernel": through,
        "attention/branch/attention/query_norm/norm/scale": neither,
        "attention/gate": neither,
        "feed_forward/branch/mixture/router": out,
        "feed_forward/branch/mixture/expert_1/layer_2/kernel": through,
        "feed_forward/branch/mixture/expert_1/layer_1/bias": into,
        "head/kernel": out,
        "head/bias": neither,
        "head/before/norm/scale": into,
    }
    for path, factor in expected.items():
        assert seen[3.0][path] == pytest.approx(factor), path
    assert set(seen[1.0].values()) == {(1.0, 1.0)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widths": [8, 4]}, "widths must ascend, got [8, 4]"),
        ({"depths": []}, "depths must ascend, got []"),
        ({"widths": [0]}, "widths must be at least 1, got 0"),
        ({"parametrization": "mupp"}, "did you mean 'mup'?"),
        ({"optimizer": "adm"}, "did you mean 'adam'?"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be finite and not negative, got -1"),
        (
            {"make_network": lambda width, depth: 3},
            "make_network must be a function (width, depth) -> Network, got 3 from it",
        ),
        (
            {
                "make_network": lambda w, l: vg.mlp(width=w, depth=l, inputs=6, norm="layer" if w > 4 else None),
                "widths": [4, 8],
            },
            "make_network must make the same parameters at all widths, got others at 4",
        ),
        (
            {
                "make_network": lambda w, l: vg.mlp(width=w, depth=l, inputs=6),
                "parametrization": "depth_mup",
            },
            "a parametrization of depth needs networks with a scale branch, got mlp",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(given: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"make_network": network, "data": DATA, "widths": [4], "depths": [1]} | given
    with pytest.raises(ValueError, match=re.escape(message)):
        vg.coordinate_check(**call)
