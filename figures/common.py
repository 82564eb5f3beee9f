"""What every figure script shares: its size, where the pictures go, and pairs of states.

A figure is a script with ``compute() -> data`` and ``draw(data) -> Figure``. ``SIZE=small`` computes a quick one and
leaves the gallery alone.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import vgjax as vg
from vgjax.compilation_cache import keep_programs

keep_programs()  # the second script of a gallery, and the second run of one, start at once

SMALL = os.environ.get("SIZE", "full") == "small"
ROOT = Path(__file__).parent
GALLERY = ROOT.parent / "results" / "figures" if SMALL else ROOT / "gallery"


def render(name: str, compute: Callable[[], Any], draw: Callable[[Any], Any]) -> None:
    """Compute, draw, save as PNG and PDF, say where."""
    for path in vg.plots.save(draw(compute()), GALLERY / name):
        print(path)


def pairs(key: Array, width: int, starts: ArrayLike, count: int = 1) -> tuple[Array, Array]:
    """Two batches of random states, in pairs: ``count`` from each start (q, 1 - c), of mean square q and cosine c.

    The pairs of all starts have the same directions, so that these do not add to what sets the starts apart.

    Returns:
        Each of shape ``(starts * count, width)``, a start's pairs one behind the other.
    """
    q, one_minus_c = jnp.repeat(jnp.asarray(starts, jnp.float32), count, axis=0).T[..., None]
    x1, across = vg.data.sphere(key, 2 * count, width).reshape(2, count, width)
    across = across - x1 * jnp.mean(x1 * across, axis=-1, keepdims=True)
    across = across / jnp.sqrt(jnp.mean(across**2, axis=-1, keepdims=True))
    x1, across = (jnp.tile(each, (len(q) // count, 1)) for each in (x1, across))
    x2 = (1 - one_minus_c) * x1 + jnp.sqrt(one_minus_c * (2 - one_minus_c)) * across
    return jnp.sqrt(q) * x1, jnp.sqrt(q) * x2


def seed_key(key: Array, seed: int) -> Array:
    """The key that a sweep draws the parameters of a seed from."""
    return jax.random.split(jax.random.fold_in(key, seed))[0]
