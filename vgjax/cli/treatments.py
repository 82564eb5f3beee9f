"""``python -m vgjax remedies``: what the textbooks' remedies do to a network that does not learn."""

import argparse
from pathlib import Path
from typing import Any

from vgjax import interrupts, plots
from vgjax.cli.said import command, say
from vgjax.files import whole_set, writable_folder

KINDS = ("vanishing", "exploding", "recurrent")


def add(commands: Any) -> None:
    """Declare it."""
    about = "Measure what every remedy of the textbooks does to a network whose gradient vanishes or explodes."
    examples = (
        "  vgjax remedies vanishing\n"
        "  vgjax remedies exploding --layers 20 --out results\n"
        "  vgjax remedies recurrent --json"
    )
    p = command(commands, "remedies", _remedies, about, examples)
    p.add_argument("kind", choices=KINDS, help="50 sigmoid layers; 50 ReLU layers at sigma_w = 3; 200 steps of time")
    p.add_argument("--layers", type=int, help="layers or time steps, in place of those")
    p.add_argument("--width", type=int, default=100, help="units of a layer")
    p.add_argument("--examples", type=int, default=32, help="images (or sequences) in the batch")
    p.add_argument("--seeds", type=int, default=8, help="independent draws of each network")
    p.add_argument("--key", type=int, default=0, help="seed of all draws")
    p.add_argument("--out", metavar="FOLDER", help="also draw them (remedies.png, .pdf) and keep the data (.npz)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def _remedies(arguments: argparse.Namespace) -> int:
    """The table; the picture where one is asked for."""
    import jax

    import vgjax as vg

    size = {"layers": arguments.layers, "examples": arguments.examples}
    cases = vg.remedies(arguments.kind, width=arguments.width, **size)
    x, y = vg.ensembles.remedy_examples(arguments.kind, **size)
    folder = writable_folder(arguments.out) if arguments.out else None
    found = vg.sweep(
        cases,
        x,
        y,
        measure=vg.first_steps(),
        leading="example",
        key=jax.random.key(arguments.key),
        seeds=arguments.seeds,
        progress=False if arguments.quiet else None,
        on_error="raise",
    )
    written = _written(found, folder) if folder else []
    names = ("log_ratio", "lost_layers", "log_first_step", "log_step")
    means = {name: found.mean(name) for name in names}
    answer = {
        "kind": arguments.kind,
        "remedies": {case: {name: means[name][i] for name in names} for i, case in enumerate(cases)},
        "files": written,
    }
    say(arguments, "\n".join([vg.ensembles.remedy_table(found), *written]), answer)
    return 0


def _written(found: Any, folder: Path) -> list[str]:
    """Data and picture, both or none."""
    figure = plots.remedies(found)
    with whole_set(folder, last="remedies.npz") as new:
        paths = [found.save(new / "remedies.npz"), *plots.save(figure, new / "remedies")]
        interrupts.ignore()
    return [str(folder / path.name) for path in paths]
