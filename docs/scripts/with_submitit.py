"""The same job array without a shell: submitit makes it, on SLURM, or here as processes of this machine."""

import sys
from pathlib import Path

import submitit

sys.path.insert(0, str(Path(__file__).parent))
import job_array

import vgjax as vg


def main(folder: str, parts: int = 4, cluster: str | None = None, width: int = 256) -> vg.Result:
    executor = submitit.AutoExecutor(f"{folder}-logs", cluster=cluster)  # None: SLURM where there is one, else here
    executor.update_parameters(timeout_min=60, cpus_per_task=1)
    each = range(parts)
    jobs = executor.map_array(job_array.main, [folder] * parts, [(i, parts) for i in each], [width] * parts)
    print(*(job.result() for job in jobs), sep="\n")
    return vg.collect(folder)


if __name__ == "__main__":
    print(main(sys.argv[1]))
