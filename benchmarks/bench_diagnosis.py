"""Forty models of which it is known what is wrong with them (`tests/sick_models.py`): the verdict of `vg.diagnose`, and
what the rules of seven tools say of the same first step.

The rules are written anew here, with the thresholds that their authors give, or that are usual where a tool only draws
and a person judges. They are given what such tools see: gradients of parameters, weights and activations in plain
floats, at initialization. A tool is right if it says the word that is true; a tool without a word for something (no
tool knows a head that is zero by construction) is wrong there.

    python benchmarks/bench_diagnosis.py        # SIZE=small for eight of the models
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import SMALL, print_table, write_json

import vgjax as vg
from vgjax.diagnosis.layout import parameter_names
from vgjax.diagnosis.models import read_model

TESTS = Path(__file__).parent.parent / "tests"
FEW = (
    "ReLU at He's scale",
    "the same, loss x 1e-5",
    "tanh at the edge",
    "ReLU at LeCun's scale",
    "sigmoid",
    "ReLU at twice LeCun's, loss x 1e-5",
    "one dead ReLU layer",
    "a root at 0",
)
FINE = ("healthy", "zero by construction")
MENDED = 0.7
"""Of the sick ones, by the first proposal."""
RIGHT = 38
"""Of forty; and no alarm on a healthy one."""


@dataclass(frozen=True)
class Evidence:
    """What is seen of one model at its first step.

    Attributes:
        gradients, weights: of every kernel, in the order of the computation.
        rms: of the result of every map with weights, as float32 has it.
        zeros, saturated: shares of the activation behind it; NaN where there is none.
        loss: its value.
    """

    gradients: list[np.ndarray]
    weights: list[np.ndarray]
    rms: np.ndarray
    zeros: np.ndarray
    saturated: np.ndarray
    loss: float

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return all(np.isfinite(a).all() for a in (*self.gradients, self.rms, self.loss))


# --- the rules ------------------------------------------------------------------------------------------------------


def gradient_norms(seen: Evidence) -> str:
    """Norms by layer, as PyTorch Lightning (``track_grad_norm``) and Weights & Biases (``watch``) draw them; 1e-6 and
    1e3 are where people speak of vanishing and exploding."""
    norms = [float(np.linalg.norm(g)) for g in seen.gradients]
    if not seen.is_finite:
        return "non-finite"
    return "vanishing" if min(norms) < 1e-6 else "exploding" if max(norms) > 1e3 else "healthy"


def gradient_histograms(seen: Evidence) -> str:
    """TensorBoard's and Cockpit's (Schneider et al. 2021) histograms of entries: all within 1e-6 of 0, or some past
    10."""
    if not seen.is_finite:
        return "non-finite"
    if any(np.all(g == 0) for g in seen.gradients):
        return "dead"
    small = any(np.mean(np.abs(g) < 1e-6) > 0.95 for g in seen.gradients)
    return "vanishing" if small else "exploding" if any(np.abs(g).max() > 10 for g in seen.gradients) else "healthy"


def autotrainer(seen: Evidence) -> str:
    """AUTOTRAINER (Zhang et al., ICSE 2021): the first layer's gradient against the last's below 1e-3 or above 70, more
    than .7 of all gradients exactly 0."""
    if not seen.is_finite:
        return "non-finite"
    if np.mean([np.mean(g == 0) for g in seen.gradients]) > 0.7:
        return "dead"
    first, last = (float(np.abs(g).mean()) for g in (seen.gradients[0], seen.gradients[-1]))
    ratio = first / last if last else math.inf
    return "vanishing" if ratio < 1e-3 else "exploding" if ratio > 70 else "healthy"


def debugger_rules(seen: Evidence) -> str:
    """Amazon SageMaker Debugger's built-in rules (and DeepDiagnosis, Wardat et al. 2022): mean |gradient| of a layer
    below 1e-7, tensors that are not finite, layers half of whose ReLUs never fire."""
    if not seen.is_finite:
        return "non-finite"
    if np.any(seen.zeros == 1):
        return "dead"
    return "vanishing" if any(np.abs(g).mean() < 1e-7 for g in seen.gradients) else "healthy"


def numeric_alerts(seen: Evidence) -> str:
    """TensorBoard's Debugger V2, UMLAUT's (Schoop et al. 2021) and ``jax_debug_nans``' alarm: NaN or infinity."""
    return "healthy" if seen.is_finite else "non-finite"


def update_ratio(seen: Evidence) -> str:
    """Update over weight, which should be about 1e-3 (Karpathy): of gradient descent at a rate of .1, two powers of ten
    to either side."""
    if not seen.is_finite:
        return "non-finite"
    pairs = zip(seen.gradients, seen.weights, strict=True)
    ratios = [0.1 * float(np.linalg.norm(g)) / max(float(np.linalg.norm(w)), 1e-30) for g, w in pairs]
    return "vanishing" if min(ratios) < 1e-5 else "exploding" if max(ratios) > 0.1 else "healthy"


def activation_scale(seen: Evidence) -> str:
    """Standard deviations of layers, as LSUV (Mishkin & Matas 2016) makes them 1: below .1, above 10."""
    if not seen.is_finite:
        return "non-finite"
    if np.any(seen.zeros == 1):
        return "dead"
    return "vanishing" if seen.rms.min() < 0.1 else "exploding" if seen.rms.max() > 10 else "healthy"


TOOLS: dict[str, Callable[[Evidence], str]] = {
    "gradient norms": gradient_norms,
    "gradient histograms": gradient_histograms,
    "AUTOTRAINER": autotrainer,
    "debugger rules": debugger_rules,
    "NaN alerts": numeric_alerts,
    "update / weight": update_ratio,
    "activation scale": activation_scale,
}


# --- what they see --------------------------------------------------------------------------------------------------


def look(made: tuple[Any, Any, Any]) -> tuple[str, str, Evidence]:
    """The word and the place of `vg.diagnose`, and what the tools are given."""
    found = vg.diagnose(*made)
    told = read_model(*made, jax.random.key(0))
    gradient = jax.jit(jax.grad(told.function))(told.parameters, told.inputs, told.rest)
    both = zip(jax.tree.leaves(gradient), jax.tree.leaves(told.parameters), strict=True)
    named = dict(zip(parameter_names(told.parameters), both, strict=True))
    sites = found.readings.sites
    kernels = [[np.asarray(a, np.float32) for a in named[name]] for name in dict.fromkeys(s.name for s in sites)]
    with np.errstate(over="ignore"):
        rms = np.exp(np.array([site.log_rms for site in sites])).astype(np.float32)
    shares = (np.array([getattr(site, name) for site in sites]) for name in ("zeros", "saturated"))
    gradients, weights = ([pair[i] for pair in kernels] for i in (0, 1))
    return found.verdict.word, found.verdict.at, Evidence(gradients, weights, rms, *shares, found.readings.loss)


def main() -> None:
    """All models, all rules; one JSON."""
    sys.path.insert(0, str(TESTS))
    from sick_models import MODELS

    chosen = FEW if SMALL else tuple(MODELS)
    said: dict[str, dict[str, str]] = {}
    placed: dict[str, bool] = {}  # where there is a layer to blame
    for name in chosen:
        sick = MODELS[name]
        word, at, seen = look(sick.make())
        placed |= {name: sick.at in at} if sick.at else {}
        said[name] = {"vg.diagnose": str(word)} | {tool: rule(seen) for tool, rule in TOOLS.items()}
        jax.clear_caches()
    truth = {name: MODELS[name].word for name in chosen}
    cures = [cure(name, MODELS[name].make()) for name in chosen if truth[name] not in FINE]
    print_table(cures)
    mended = sum(row["mended"] for row in cures)
    print(f"the first proposal leaves less than a factor of e: {mended} of {len(cures)}")
    print_table([{"model": name, "truth": truth[name], **said[name]} for name in chosen])
    scores = [score(tool, truth, said) for tool in ("vg.diagnose", *TOOLS)]
    print_table(scores)
    ours = scores[0]
    reached = ours["right"] >= RIGHT * len(chosen) / 40 and not ours["false alarms"]
    print(f"vg.diagnose: {ours['right']} of {len(chosen)}, the layer to blame {sum(placed.values())} of {len(placed)}")
    about: dict[str, Any] = {"mended": mended, "sick": len(cures), "mended wanted": MENDED, "cures": cures}
    about |= {"models": len(chosen), "limit": RIGHT, "reached": reached, "the layer to blame": placed}
    write_json("diagnosis", {**about, "scores": scores, "truth": truth, "said": said})


def cure(name: str, made: tuple[Any, Any, Any]) -> dict[str, Any]:
    """The first proposal for a sick model, and whether it brings L / xi below 1."""
    first = vg.diagnosis.proposals(*made)[0]
    jax.clear_caches()
    done = first.change is not None and first.after.is_healthy and abs(first.after.lost) < 1
    return {
        "model": name,
        "proposal": first.name,
        "before": first.before.lost,
        "after": first.after.lost,
        "mended": done,
    }


def score(tool: str, truth: dict[str, str], said: dict[str, dict[str, str]]) -> dict[str, Any]:
    """How many words are right, how many sick models raise an alarm, and how many that are none."""
    fine = FINE
    words = {name: said[name][tool] for name in truth}
    return {
        "rule": tool,
        "right": sum(words[name] == true for name, true in truth.items()),
        "sick found": sum(words[name] not in fine for name, true in truth.items() if true not in fine),
        "of": sum(true not in fine for true in truth.values()),
        "false alarms": sum(words[name] not in fine for name, true in truth.items() if true in fine),
        "of healthy": sum(true in fine for true in truth.values()),
    }


if __name__ == "__main__":
    main()
