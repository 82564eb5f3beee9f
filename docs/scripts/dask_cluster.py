"""Trainings on a Dask cluster: here two processes of this machine, there whatever the scheduler has."""

import sys

import jax
import numpy as np
from distributed import Client, LocalCluster

import vgjax as vg


def main(client: Client, folder: str, steps: int = 200) -> vg.Result:
    networks = {f"depth {depth}": vg.mlp(width=32, depth=depth, inputs=64, outputs=10) for depth in (4, 16)}
    training, test = vg.data.split(jax.random.key(2), vg.data.digits())
    return vg.sweep(
        networks,
        measure=vg.trainings(training, "adam", steps, test=test),
        key=jax.random.key(0),
        seeds=4,
        sigma_w=np.linspace(1.0, 2.0, 6),
        executor=client.get_executor(),
        workers=sum(client.ncores().values()),
        folder=folder,
    )


if __name__ == "__main__":
    # Client("tcp://scheduler:8786") for a cluster that is there already.
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        print(main(client, sys.argv[1]))
