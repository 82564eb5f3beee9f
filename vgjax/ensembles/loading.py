"""Results that come back: from files, and from the folders of runs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vgjax.checks import kinds
from vgjax.ensembles.folder import is_run, load_folder, open_run
from vgjax.ensembles.result import SEAL, Read, Result, import_xarray, result_of, with_known_suffix
from vgjax.files import read_arrays
from vgjax.networks.network import Network
from vgjax.version import VERSION


@kinds
def load(path: str | os.PathLike[str], network: Network | Mapping[str, Network] | None = None) -> Result:
    """Read back what `Result.save` wrote, or what is there of the run in a folder of `vgjax.sweep`.

    Of a run that is not finished, missing points are NaN, and ``result.missing_points`` counts them; `vgjax.collect`
    refuses such a one.

    Args:
        path: ``.npz`` or ``.nc``, or a run's folder.
        network: the network, or several by name, where a file cannot hold them: with an activation, a block or a law
            of your own.

    Raises:
        ValueError: a suffix other than ``.npz`` and ``.nc``, a file or folder that holds no result, or a network that
            is not one of the result's.
        FileNotFoundError: there is no such file.
    """
    if is_run(path):
        return load_folder(path, network)
    if Path(path).is_dir() and Path(path).suffix not in (".npz", ".nc"):
        open_run(path)  # which says what is missing
    path = with_known_suffix(path)
    try:
        found = (_read_nc if path.suffix == ".nc" else _read_npz)(path)
    except FileNotFoundError:
        raise
    # What files of anything and damaged ones raise: the system, netCDF, JSON, and what looks for what is not there.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"path must hold a whole saved result, got {str(path)!r} ({said})") from None
    try:
        return result_of(found, network)
    except (KeyError, TypeError, AttributeError):
        version = found[0].get("provenance", {}).get("vgjax", "no known version")
        raise ValueError(
            f"path must hold a result as version {VERSION} writes it, got {str(path)!r} of {version}"
        ) from None


def _read_npz(path: Path) -> Read:
    arrays = read_arrays(path, SEAL)
    if arrays is None:
        raise ValueError("something else, or not all of one")
    kinds: dict[str, dict[str, Any]] = {"axis": {}, "coordinate": {}, "variable": {}}
    description = json.loads(str(arrays.pop("description")))
    for key, a in arrays.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = a
    return description, kinds["axis"], kinds["coordinate"], kinds["variable"]


def _read_nc(path: Path) -> Read:
    with import_xarray().open_dataset(path) as dataset:
        data = dataset.load()
    if "measure" not in data.attrs:
        raise ValueError("something else")
    description = {name: json.loads(value) for name, value in data.attrs.items()}
    axes, coordinates = ({n: data[n].values for n in description[kind]} for kind in ("axes", "coordinate_names"))
    return description, axes, coordinates, {name: data[name].values for name in description["dims"]}
