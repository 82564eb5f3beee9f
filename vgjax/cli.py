"""``python -m vgjax map``, ``diagnose``, ``status``, ``collect``, ``explore``: jobs from the command line."""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgjax import interrupts, plots
from vgjax.activations import NAMES
from vgjax.checks import not_negative, positive_integer
from vgjax.compilation_cache import SWITCH, keep_programs
from vgjax.ensembles.folder import MissingPieces
from vgjax.ensembles.result import nearest
from vgjax.files import whole_file, whole_set, writable_folder
from vgjax.initializers import KERNEL_INITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vgjax.ensembles.result import Result
    from vgjax.theory import Critical


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it worked, 1 of a model whose gradient is sick and of a run that is not done, 2 with one
    sentence on standard error if the input was bad or nothing could be written. An interrupt ends the process
    (`vgjax.interrupts`)."""
    arguments = _parser().parse_args(argv)
    if not getattr(arguments, "no_cache", True):
        keep_programs()
    commands = {"map": _map, "diagnose": _diagnose, "status": _status, "collect": _collect, "explore": _explore}
    try:
        return commands[arguments.command](arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"vgjax: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vgjax", description="Maps where gradients vanish or explode in deep networks."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_map, _add_diagnose, _add_status, _add_collect, _add_explore):
        add(commands)
    about = "compile everything anew, instead of keeping it in the user's cache folder for the next command"
    for command in (commands.choices[name] for name in ("map", "diagnose", "explore")):
        command.add_argument("--no-cache", action="store_true", help=f"{about} (as {SWITCH}=off does)")
    return parser


def _add_map(commands: Any) -> None:
    about = "Draw the map over (sigma_w, sigma_b) and depth from real images, and the gradient against layer."
    p = commands.add_parser(
        "map", help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--activation", default="tanh", help=f"one of {', '.join(NAMES)}")
    p.add_argument(
        "--sigma-w",
        nargs=2,
        type=float,
        default=(0.5, 3.0),
        metavar=("FROM", "TO"),
        help="weight scales, standard deviations",
    )
    p.add_argument(
        "--sigma-b",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("FROM", "TO"),
        help="bias scales, standard deviations",
    )
    p.add_argument("--points", type=int, default=48, help="grid points along each scale")
    p.add_argument("--width", type=int, default=256, help="units of a layer")
    p.add_argument("--depth", type=int, default=100, help="layers")
    p.add_argument("--seeds", type=int, default=4, help="independent draws, each with its own image")
    p.add_argument("--kernel-init", default="gaussian", help=f"of the weights: {', '.join(KERNEL_INITS)}")
    p.add_argument("--at", type=float, default=0.05, help="bias scale of the depth panel and of the profile")
    p.add_argument("--key", type=int, default=0, help="seed of all draws")
    p.add_argument("--out", default="results", help="folder for the figures (PNG, PDF) and the data (.npz)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_diagnose(commands: Any) -> None:
    about = "Say what is wrong with the gradient of a model: where it vanishes, explodes or ends, and why."
    p = commands.add_parser("diagnose", help=about, description=about)
    p.add_argument("function", metavar="package.module:function", help="returns (model, batch) or (model, batch, loss)")
    p.add_argument("--html", metavar="FILE", help="write the report as one page")
    p.add_argument("--json", metavar="FILE", help="write verdict and numbers as JSON")


def _add_status(commands: Any) -> None:
    about = "Say how far the run in a folder of vgjax.sweep is; exit status 0 if every piece is done, else 1."
    p = commands.add_parser("status", help=about, description=about)
    p.add_argument("folder")
    p.add_argument("--json", action="store_true", help="as JSON")


def _add_collect(commands: Any) -> None:
    about = "Write the result of the run in a folder; exit status 1 if pieces are missing, which are named."
    p = commands.add_parser("collect", help=about, description=about)
    p.add_argument("folder")
    p.add_argument("out", metavar="FILE", help="a result: .npz, or .nc (netCDF)")


def _add_explore(commands: Any) -> None:
    about = "Write the explorer, one page that shows the theory of every scale, depth and width, and open it."
    p = commands.add_parser("explore", help=about, description=about)
    p.add_argument("--activation", action="append", help="may be given several times; left out, nine common ones")
    p.add_argument("--out", default="results/explorer.html", metavar="FILE", help="the page")
    p.add_argument("--no-open", action="store_true", help="write it and open no browser")
    p.add_argument("--json", action="store_true", help="say what was written as JSON")


def _status(arguments: argparse.Namespace) -> int:
    """0 of a run whose pieces are all done, else 1."""
    import vgjax as vg

    found = vg.status(arguments.folder)
    said = {**found._asdict(), "remaining": found.remaining, "seconds_left": found.seconds_left}
    known = {name: value if np.isfinite(value) else None for name, value in said.items()}
    print(json.dumps(known, allow_nan=False) if arguments.json else found)
    return 0 if found.is_complete else 1


def _collect(arguments: argparse.Namespace) -> int:
    """0 if the result is written, 1 if pieces of it are missing."""
    import vgjax as vg

    try:
        result = vg.collect(arguments.folder)
    except MissingPieces as error:
        print(f"vgjax: {error}", file=sys.stderr)
        return 1
    print(result, result.save(arguments.out), sep="\n")
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    """0 of a healthy model, 1 of a sick one, 2 of what fails itself, with its own error."""
    import vgjax as vg

    function = _named(arguments.function)
    try:
        given = function()
        if type(given) is not tuple or len(given) not in (2, 3):
            raise ValueError(f"{arguments.function} must return (model, batch) or (model, batch, loss)")
        found = vg.diagnose(*given)
    except Exception:
        traceback.print_exc()
        return 2
    if arguments.html:
        found.to_html(arguments.html)
    if arguments.json:
        with whole_file(Path(arguments.json)) as temporary:
            temporary.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    print(found)
    return 0 if found.is_healthy else 1


def _explore(arguments: argparse.Namespace) -> int:
    """The path on standard output; a browser only where there is a screen."""
    import os
    import webbrowser

    names = arguments.activation or list(plots.EXPLORED)
    path = plots.explorer(arguments.out, names)
    if arguments.json:
        print(json.dumps({"path": str(path), "bytes": path.stat().st_size, "activations": names}))
    else:
        print(path)
    screen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screen and not arguments.no_open:
        webbrowser.open(path.resolve().as_uri())
    return 0


def _named(spec: str) -> Callable[[], Any]:
    """The function that ``package.module:function`` names, also of the folder that one stands in."""
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ValueError(f"function must be given as package.module:function, got {spec!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(name), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        raise ValueError(f"function must be in a module that can be imported, got {spec!r} ({error})") from None
    if not callable(function):
        raise ValueError(f"function must be one of module {name}, got {attribute!r}")
    return function


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
    images, names = vg.data.digits(), ("width", "depth", "activation", "kernel_init")
    given = {name: getattr(arguments, name) for name in names}
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
    edge_in_theory = _edge_in_theory(vg.theory.critical(arguments.activation, sigma_b))
    with whole_set(folder, last="map.npz") as new:
        written = [sweep.save(new / "map.npz")]
        for name, figure in figures.items():
            written += plots.save(figure, new / name)
        interrupts.ignore()
    print(f"{activation}: at sigma_b = {sigma_b:.3g} {_verdict(grid['sigma_w'], edge)}")
    print(edge_in_theory, comparison, *(folder / path.name for path in written), sep="\n")
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


def _edge_in_theory(critical: "Critical") -> str:
    """What infinite width says of the edge."""
    if critical.is_edge:
        return f"theory, infinite width: the edge of chaos lies at sigma_w = {critical.sigma_w:.3f}"
    return f"theory, infinite width: there is no edge of chaos: {critical.reason}"


def _shown(sigma_w: np.ndarray, edge: float) -> dict[str, float]:
    """The weight scales of the profile: both ends of the grid, and the edge where there is one."""
    if not np.isfinite(edge):
        return {"lowest": float(sigma_w[0]), "highest": float(sigma_w[-1])}
    return {"vanishing": float(sigma_w[0]), "critical": float(edge), "exploding": float(sigma_w[-1])}
