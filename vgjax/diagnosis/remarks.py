"""What else a person should know of a model, beside the verdict."""

import math

from vgjax.diagnosis.readings import Readings
from vgjax.diagnosis.table import log_gains_by_kind
from vgjax.diagnosis.verdict import Verdict, Word, inner, theil_sen, zero_factors
from vgjax.diagnosis.words import listed, number


def remarks(readings: Readings, verdict: Verdict) -> list[str]:
    """What else a person should know, a sentence each."""
    said = [_of_kinds(readings, verdict), _of_weight_gradients(readings, verdict), _of_the_signal(verdict)]
    said.append(_of_the_frontier(readings))
    zero = zero_factors(readings)
    if zero:
        said.append(f"exactly 0 by construction: {listed(zero)}; what it multiplies gets no gradient at first")
    sites = {site.name for site in readings.sites}
    gone = [name for name, log in readings.parameter_gradients.items() if log == -math.inf and name not in zero]
    if gone and verdict.word not in (Word.DEAD, Word.ZERO) and not zero:
        unused = "" if sites & set(gone) else ": not used, or detached"
        said.append(f"no gradient reaches {listed(gone)}{unused}")
    for shape, where in readings.constants:
        said.append(f"an array of shape {shape} is a constant of the function ({where}): JAX gives it no gradient")
    for what, where in dict.fromkeys(readings.opaque):
        stops = (
            "no gradient passes it"
            if what == "while"
            else "it has a rule of its own, is not looked into, and past the float range is taken as linear"
        )
        said.append(f"{what} ({where}): {stops}")
    if readings.first_inexact:
        said.append(f"past the float range and not computed exactly from {readings.first_inexact} on")
    if readings.cotangent == "random":
        said.append("no loss: random vectors at the output; norms squared estimate ||d out/d h||_F^2 (Hutchinson)")
    return [sentence for sentence in said if sentence]


def _of_kinds(readings: Readings, verdict: Verdict) -> str:
    """What it is that changes the gradient between the states that are judged."""
    path = next((path for path in readings.paths if path.name == verdict.path), None)
    if path is None or verdict.word not in (Word.VANISHING, Word.EXPLODING):
        return ""
    judged = {id(row) for row in inner(path)}
    places = [i for i, row in enumerate(path.rows) if id(row) in judged]
    gains = log_gains_by_kind(path.rows[places[0] : places[-1] + 1])
    sums = {kind: sum(some[1:]) for kind, some in gains.items()}
    if len(sums) < 2 or not all(map(math.isfinite, sums.values())):
        return ""
    largest = [kind for kind in sorted(sums, key=lambda kind: -abs(sums[kind])) if abs(sums[kind]) >= 0.05]
    return "what changes it, in ln over all layers: " + ", ".join(f"{kind} {sums[kind]:+.1f}" for kind in largest)


def _of_weight_gradients(readings: Readings, verdict: Verdict) -> str:
    """What the usual plot shows: dL/dW is the gradient times the signal, whose growths may cancel."""
    states = inner(readings.paths[0]) if readings.paths else []
    logs = [state.log_parameter_gradient for state in states if math.isfinite(state.log_parameter_gradient)]
    if len(logs) < 3 or math.isnan(verdict.lost) or verdict.kind == "time":
        return ""
    change = theil_sen(logs) * (len(logs) - 1)
    seen = abs(change) >= verdict.limit
    if seen == (verdict.word in (Word.VANISHING, Word.EXPLODING)):
        return f"a plot of weight gradients shows the same: {number(-change)} from the last to the first"
    if seen:
        return (
            f"a plot of weight gradients would show {number(-change)} from the last to the first and mislead: "
            "dL/dW is the gradient times the signal, and here it is the signal that changes"
        )
    return (
        f"a plot of weight gradients would look even ({number(-change)} from the last to the first) and mislead: "
        "dL/dW is the gradient times the signal, and the two cancel"
    )


def _of_the_signal(verdict: Verdict) -> str:
    change = verdict.forward_slope * verdict.layers
    if math.isnan(change) or abs(change) < verdict.limit:
        return ""
    return f"the signal itself {'grows' if change > 0 else 'shrinks'} by {number(change)} on its way forward"


def _of_the_frontier(readings: Readings) -> str:
    """Without cuts, what reaches the input and what the deep way gets are two numbers."""
    if len(readings.frontier) < 2:
        return ""
    first, last = readings.frontier[0], readings.frontier[-1]
    smallest = min(readings.frontier, key=lambda part: part.log_smallest - part.log_cotangent)
    return (
        f"the gradient has several ways: in all it changes by {number(first.log_cotangent - last.log_cotangent)} from "
        f"the output to the input, the weakest carries {number(smallest.log_smallest - smallest.log_cotangent)} of it "
        f"({smallest.where})"
    )
