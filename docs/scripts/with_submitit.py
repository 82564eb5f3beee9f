"""A job array without a shell: submitit makes it, on SLURM where there is one, else as processes of this machine.

python with_submitit.py runs/tanh 16
"""

import sys

import jax
import numpy as np
import submitit

import vgjax as vg


def part(i: int, parts: int, folder: str, width: int) -> str:
    network = vg.mlp(width=width, depth=100, activation="tanh", inputs=width)
    x = jax.random.normal(jax.random.key(1), (width,))
    sigma = np.linspace(0.5, 3.0, 24, dtype=np.float32)
    return str(
        vg.sweep(
            network,
            x,
            key=jax.random.key(0),
            seeds=32,
            sigma_w=sigma,
            sigma_b=sigma / 3,
            folder=folder,
            part=(i, parts),
        )
    )


def main(folder: str, parts: int = 4, width: int = 256) -> vg.Result:
    executor = submitit.AutoExecutor(f"{folder}-logs")
    executor.update_parameters(timeout_min=60, cpus_per_task=1)
    jobs = executor.map_array(part, range(parts), [parts] * parts, [folder] * parts, [width] * parts)
    print(*(job.result() for job in jobs), sep="\n")
    return vg.collect(folder)


if __name__ == "__main__":
    print(main(sys.argv[1], *map(int, sys.argv[2:])))
