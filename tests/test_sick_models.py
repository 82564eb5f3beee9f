"""The verdict on models of which it is known what is wrong with them."""

import jax
import pytest
from sick_models import MODELS, stack

import vgjax as vg
from vgjax.diagnosis import Diagnosis

QUICK = (
    "ReLU at He's scale",
    "tanh at the edge",
    "neural ODE",
    "transformer, pre-LN",
    "IRNN",
    "ReLU at LeCun's scale",
    "the same, scanned",
    "one saturated layer",
    "RNN, orthogonal x .8",
    "ReLU at twice LeCun's, loss x 1e-5",
    "one dead ReLU layer",
    "a root at 0",
)
"""One of every kind; the others are slow together."""


def test_there_are_forty():
    assert len(MODELS) == 40
    assert {sick.word for sick in MODELS.values()} == {
        "healthy", "vanishing", "exploding", "dead", "non-finite", "zero by construction",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_the_verdict_is_the_truth(name):
    sick = MODELS[name]
    found = vg.diagnose(*sick.make())
    assert found.verdict.word == sick.word, f"{sick.why}\n{found}"
    assert sick.at in found.verdict.at, str(found)


@pytest.mark.parametrize("loss_scale", [1e-5, 1e5])
def test_a_scale_of_the_loss_changes_no_number_of_the_verdict(loss_scale):
    """Neither in the ordinary range nor where plain float32 reads 0 or infinity."""
    for sigma_w in (1.0, 1.4142135):
        made = (stack(jax.nn.relu, sigma_w, 12, loss_scale=each) for each in (1.0, loss_scale))
        one, other = (vg.diagnose(*each).verdict for each in made)
        assert other.word == one.word
        assert (other.lost, other.slope) == (pytest.approx(one.lost, abs=1e-4), pytest.approx(one.slope, abs=1e-5))


def test_a_remedy_shows_beside_what_was_before():
    before, after = (vg.diagnose(*stack(jax.numpy.tanh, sigma_w, 20)) for sigma_w in (0.6, 1.0))
    assert isinstance(after, Diagnosis)
    assert str(after.since(before)).startswith("before: vanishing")
