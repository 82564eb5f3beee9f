"""``python -m vgjax map``: the map of a plain stack, with its theory."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vgjax import interrupts, plots
from vgjax.activations import NAMES
from vgjax.checks import not_negative, positive_integer
from vgjax.cli.said import command, say
from vgjax.ensembles.result import nearest
from vgjax.files import whole_set, writable_folder
from vgjax.initializers import KERNEL_INITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vgjax.ensembles.result import Result
    from vgjax.theory import Critical


def add(commands: Any) -> None:
    """Declare it."""
    about = "Draw the map over (sigma_w, sigma_b) and depth from real images, and the gradient against layer."
    examples = (
        "  vgjax map\n  vgjax map --activation gelu --sigma-w 1 2 --width 64 --out gelu\n  vgjax map --quiet --json"
    )
    p = command(commands, "map", _map, about, examples)
    p.add_argument("--activation", default="tanh", help=f"one of {', '.join(NAMES)}")
    for flag, default, of in (("--sigma-w", (0.5, 3.0), "weight"), ("--sigma-b", (0.0, 1.0), "bias")):
        about = f"{of} scales, standard deviations"
        p.add_argument(flag, nargs=2, type=float, default=default, metavar=("FROM", "TO"), help=about)
    p.add_argument("--points", type=int, default=48, help="grid points along each scale")
    p.add_argument("--width", type=int, default=256, help="units of a layer")
    p.add_argument("--depth", type=int, default=100, help="layers")
    p.add_argument("--seeds", type=int, default=4, help="independent draws, each with its own image")
    p.add_argument("--kernel-init", default="gaussian", help=f"of the weights: {', '.join(KERNEL_INITS)}")
    p.add_argument("--at", type=float, default=0.05, help="bias scale of the depth panel and of the profile")
    p.add_argument("--key", type=int, default=0, help="seed of all draws")
    p.add_argument("--out", default="results", help="folder for the figures (PNG, PDF) and the data (.npz)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def _map(arguments: argparse.Namespace) -> int:
    """Everything is computed before anything is written, and all of it is written or nothing."""
    import jax

    import vgjax as vg

    start = time.perf_counter()
    grid: dict[str, Any] = {
        name: _axis(name, getattr(arguments, name), arguments.points) for name in ("sigma_w", "sigma_b")
    }
    seeds = positive_integer("seeds", arguments.seeds)
    not_negative("--at", arguments.at)
    images = vg.data.digits()
    given = {name: getattr(arguments, name) for name in ("width", "depth", "activation", "kernel_init")}
    network = vg.mlp(inputs=images.inputs.shape[1], outputs=10, **given)
    folder, key = writable_folder(arguments.out), jax.random.key(arguments.key)
    draw = jax.jit(lambda key: jax.random.choice(jax.random.fold_in(key, seeds), len(images.inputs), (seeds,)))
    chosen = np.asarray(draw(key))
    x, y = (np.asarray(a)[chosen] for a in (images.inputs, images.labels))

    common: dict[str, Any] = {"key": key, "seeds": seeds, "leading": "seed", "on_error": "raise"}
    common["progress"] = False if arguments.quiet else None
    sweep = vg.sweep(network, x, **grid, **common)
    sigma_b = nearest(grid["sigma_b"], arguments.at)
    edge = float(sweep.edge("sigma_w")[int(np.flatnonzero(grid["sigma_b"] == sigma_b)[0])])
    comparison = vg.compare(sweep)
    shown = _shown(grid["sigma_w"], edge)
    along: dict[str, Any] = {"sigma_w": list(shown.values()), "sigma_b": sigma_b}
    flows = vg.sweep(network, x, y, measure=vg.gradients(), **common, **along)
    lost = vg.sweep(network, x, y, measure=vg.naive_readings("float32"), **common, **along).lost
    activation = plots.describe(sweep)
    figures = {
        "map": plots.phase_map(sweep, at=sigma_b, theory=comparison),
        "profile": _profile(shown, flows, lost, rf"{activation}, $\sigma_b$ = {sigma_b:.2g}"),
    }
    critical = vg.theory.critical(arguments.activation, sigma_b)
    with whole_set(folder, last="map.npz") as new:
        written = [sweep.save(new / "map.npz")]
        for name, figure in figures.items():
            written += plots.save(figure, new / name)
        interrupts.ignore()
    said = f"{activation}: at sigma_b = {sigma_b:.3g} {_verdict(grid['sigma_w'], edge)}"
    paths = [str(folder / path.name) for path in written]
    edges = {"sigma_b": sigma_b, "edge": edge, "edge_in_theory": critical.edge}
    answer = {**given, **edges, "verdict": said, "comparison": str(comparison), "files": paths}
    say(arguments, "\n".join([said, edge_in_theory(critical), str(comparison), *paths]), answer)
    count, seconds = sweep.log_gain[..., -1].size, time.perf_counter() - start
    print(f"{count} networks of {sweep.depth} layers in {seconds:.1f} s", file=sys.stderr)
    return 0


def _profile(shown: dict[str, float], flows: "Result", lost: np.ndarray, title: str) -> "Figure":
    """The gradient against layer at each weight scale, with its theory and what float32 reads of it."""
    from vgjax.comparison import compare

    names = [f"{name}, $\\sigma_w$ = {sigma_w:.2f}" for name, sigma_w in shown.items()]
    curves, readings = (dict(zip(names, a.swapaxes(0, 1), strict=True)) for a in (flows.log_gradient, lost))
    bands = dict(zip(names, compare(flows).bands, strict=True))
    return plots.depth_profile(curves, lost=readings, title=title, theory=bands)


def _axis(name: str, ends: Sequence[float], points: int) -> np.ndarray:
    """The grid along one scale, checked."""
    if positive_integer("points", points) < 2:
        raise ValueError(f"points must be at least 2 to draw a map, got {points}")
    flag = "--" + name.replace("_", "-")
    not_negative(flag, ends)
    if not ends[0] < ends[1]:
        raise ValueError(f"{flag} must run from a smaller to a larger value, got {ends[0]:g} {ends[1]:g}")
    return np.linspace(ends[0], ends[1], points, dtype=np.float32)


def _verdict(sigma_w: np.ndarray, edge: float) -> str:
    """What the map says in words."""
    if np.isfinite(edge):
        return f"gradients vanish below sigma_w = {edge:.3f} and explode above"
    return f"there is no edge from sigma_w = {sigma_w[0]:g} to {sigma_w[-1]:g}"


def edge_in_theory(critical: "Critical") -> str:
    """What infinite width says of the edge."""
    if critical.is_edge:
        return f"theory, infinite width: the edge of chaos lies at sigma_w = {critical.sigma_w:.3f}"
    return f"theory, infinite width: there is no edge of chaos: {critical.reason}"


def _shown(sigma_w: np.ndarray, edge: float) -> dict[str, float]:
    """The weight scales of the profile: both ends of the grid, and the edge where there is one."""
    if not np.isfinite(edge):
        return {"lowest": float(sigma_w[0]), "highest": float(sigma_w[-1])}
    return {"vanishing": float(sigma_w[0]), "critical": float(edge), "exploding": float(sigma_w[-1])}
