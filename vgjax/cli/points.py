"""``python -m vgjax theory``: what infinite width says of one pair of scales."""

import argparse
import math
from typing import Any

from vgjax.activations import NAMES
from vgjax.checks import not_negative, positive_integer
from vgjax.cli.maps import edge_in_theory
from vgjax.cli.said import command, say
from vgjax.initializers import KERNEL_INITS


def add(commands: Any) -> None:
    """Declare it."""
    about = "Say what infinite width, and its first correction, predict of a plain stack at one pair of scales."
    examples = (
        "  vgjax theory --sigma-w 1.5 --sigma-b 0.05\n"
        "  vgjax theory --activation gelu --sigma-b 0.1            the edge of chaos, if there is one\n"
        "  vgjax theory --activation relu --sigma-w 1.5 --json | jq .chi"
    )
    p = command(commands, "theory", _theory, about, examples)
    p.add_argument("--activation", default="tanh", help=f"one of {', '.join(NAMES)}")
    p.add_argument("--sigma-w", type=float, help="weight scale, standard deviation; the critical one if not given")
    p.add_argument("--sigma-b", type=float, default=0.05, help="bias scale, standard deviation")
    p.add_argument("--width", type=int, default=256, help="units of a layer")
    p.add_argument("--depth", type=int, default=100, help="layers")
    p.add_argument("--kernel-init", default="gaussian", help=f"of the weights: {', '.join(KERNEL_INITS)}")


def _theory(arguments: argparse.Namespace) -> int:
    """0; 2 where no scale is given and there is none that is critical."""
    import vgjax as vg

    sizes = {name: positive_integer(name, getattr(arguments, name)) for name in ("width", "depth")}
    not_negative("--sigma-b", arguments.sigma_b)
    critical = vg.theory.critical(arguments.activation, arguments.sigma_b)
    if arguments.sigma_w is None:
        if not critical.is_edge:
            raise ValueError(f"--sigma-w must be given where there is no edge of chaos: {critical.reason}")
        arguments.sigma_w = float(critical.sigma_w)
    not_negative("--sigma-w", arguments.sigma_w)
    scales = {"sigma_w": arguments.sigma_w, "sigma_b": arguments.sigma_b}
    point = vg.theory.mean_field(arguments.activation, **scales)
    widths = [sizes["width"]] * (sizes["depth"] + 1)
    band = vg.theory.band(arguments.activation, widths, **scales, kernel_init=arguments.kernel_init)
    numbers = {name: float(getattr(point, name)) for name in ("q_star", "chi", "c_star", "xi_q", "xi_c", "xi_grad")}
    answer = {
        "activation": arguments.activation,
        **scales,
        **numbers,
        "phase": str(point.phase),
        "status": str(point.status),
        "edge": float(critical.edge),
        **sizes,
        "log_gain_mean": float(band.mean[-1]),
        "log_gain_deviation": float(band.deviation[-1]),
    }
    say(arguments, _in_words(answer, edge_in_theory(critical)), answer)
    return 0


def _in_words(answer: dict[str, Any], edge: str) -> str:
    """A sentence a line: the gradient, the signal, two inputs, a finite network, the edge."""
    factor, spread = math.sqrt(answer["chi"]), answer["log_gain_deviation"]
    growth = {
        "ordered": f"gradients vanish, by a factor of {factor:.4g} a layer",
        "critical": "gradients neither vanish nor explode",
        "chaotic": f"gradients explode, by a factor of {factor:.4g} a layer",
    }[answer["phase"]]
    at = ", ".join(f"{name} = {answer[name]:.6g}" for name in ("sigma_w", "sigma_b"))
    return "\n".join(
        [
            f"{answer['activation']}, {at}: {answer['phase']}: {growth} (chi = {answer['chi']:.6g}, "
            f"xi_grad = {answer['xi_grad']:.4g} layers)",
            f"the variance of preactivations: {answer['status']}, q* = {answer['q_star']:.6g} "
            f"(xi_q = {answer['xi_q']:.4g} layers)",
            f"two inputs: their correlation tends to c* = {answer['c_star']:.6g} (xi_c = {answer['xi_c']:.4g} layers)",
            f"width {answer['width']}, {answer['depth']} layers: ln of the gradient's gain = "
            f"{answer['log_gain_mean']:.4g} ± {spread:.2g} over draws",
            edge,
        ]
    )
