"""One process, all devices of this machine: the points of the grid are laid over them."""

import jax
import numpy as np

import vgjax as vg


def main(width: int = 1000, points: int = 64) -> vg.Result:
    print(f"on {len(jax.local_devices())} x {jax.local_devices()[0].device_kind}")
    network = vg.mlp(width=width, depth=100, activation="tanh", inputs=width)
    x = jax.random.normal(jax.random.key(1), (width,))
    sigma = np.linspace(0.5, 3.0, points, dtype=np.float32)
    return vg.sweep(network, x, key=jax.random.key(0), seeds=4, sigma_w=sigma, sigma_b=sigma / 3)


if __name__ == "__main__":
    print(main())
