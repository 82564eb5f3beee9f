"""What is wrong with a network: the gradient flow of any JAX model, as it is, and a verdict."""

from vgjax.diagnosis.calls import assert_trainable, diagnose
from vgjax.diagnosis.readings import Frontier, Path, Readings, Row
from vgjax.diagnosis.report import Change, Diagnosis
from vgjax.diagnosis.trials import Proposal, proposals
from vgjax.diagnosis.verdict import Verdict, judge
from vgjax.diagnosis.watching import watch

__all__ = [
    "Change",
    "Diagnosis",
    "Frontier",
    "Path",
    "Proposal",
    "Readings",
    "Row",
    "Verdict",
    "assert_trainable",
    "diagnose",
    "judge",
    "proposals",
    "watch",
]
