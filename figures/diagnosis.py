"""A Flax network as it is, diagnosed: every sigmoid layer passes a quarter of the gradient on, and one is saturated."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from common import SMALL, render
from flax import nnx

import vgjax as vg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vgjax.diagnosis import Diagnosis

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


def compute() -> "Diagnosis":
    """On a batch of digits."""
    images = vg.data.digits()
    return vg.diagnose(Net(nnx.Rngs(0)), (images.inputs[:64], images.labels[:64]), cross_entropy)


def draw(found: "Diagnosis") -> "Figure":
    """Signal and gradient, state by state."""
    return found.plot()


if __name__ == "__main__":
    render("diagnosis", compute, draw)
