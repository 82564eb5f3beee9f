"""One part of a run for each task of a job array; `vgjax collect FOLDER map.npz` when all are done.

sbatch --array=0-15 --cpus-per-task=4 --wrap "python job_array.py runs/tanh"
"""

import os
import sys

import jax
import numpy as np

import vgjax as vg


def main(folder: str, part: tuple[int, int], width: int = 256) -> object:
    network = vg.mlp(width=width, depth=100, activation="tanh", inputs=width)
    x = jax.random.normal(jax.random.key(1), (width,))
    sigma = np.linspace(0.5, 3.0, 24, dtype=np.float32)
    return vg.sweep(
        network, x, key=jax.random.key(0), seeds=32, sigma_w=sigma, sigma_b=sigma / 3, folder=folder, part=part
    )


if __name__ == "__main__":
    task = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)), int(os.environ.get("SLURM_ARRAY_TASK_COUNT", 1))
    print(main(sys.argv[1], task))
