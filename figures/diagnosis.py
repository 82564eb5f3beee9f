"""A Flax network as it is, diagnosed: every sigmoid layer passes a quarter of the gradient on, and one is saturated;
and the same network with the change that helped it most.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from common import SMALL, render
from flax import nnx

import vgjax as vg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vgjax.diagnosis import Change

DEPTH, SATURATED = (12, 5) if SMALL else (30, 12)


class Net(nnx.Module):
    """Linear layers with Flax's own draws, and one bias that is far too large."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(DEPTH)])
        self.head = nnx.Linear(64, 10, rngs=rngs)
        self.layers[SATURATED].bias[...] += 12.0

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = jax.nn.sigmoid(layer(x))
        return self.head(x)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean over the batch."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def compute() -> "Change":
    """On a batch of digits."""
    images = vg.data.digits()
    data = (images.inputs[:64], images.labels[:64]), cross_entropy
    sick = Net(nnx.Rngs(0))
    proposals = vg.diagnosis.proposals(sick, *data)
    print(*proposals, sep="\n")
    return vg.diagnose(proposals[0].apply(sick), *data).since(vg.diagnose(sick, *data))


def draw(change: "Change") -> "Figure":
    """Signal and gradient, state by state, as they were."""
    return change.before.plot()


def draw_both(change: "Change") -> "Figure":
    """The same before and after."""
    return change.plot()


if __name__ == "__main__":
    change = compute()
    render("diagnosis", lambda: change, draw)
    render("diagnosis_mended", lambda: change, draw_both)
