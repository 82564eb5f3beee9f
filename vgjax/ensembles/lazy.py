"""A run's folder as a data set that is read piece by piece, when it is asked for: also one larger than memory."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vgjax.checks import kinds
from vgjax.ensembles.assembly import Arrays, Place, shaped
from vgjax.ensembles.folder import Run, open_run
from vgjax.ensembles.result import import_xarray
from vgjax.networks.network import Network

if TYPE_CHECKING:
    import xarray


@kinds
def open_dataset(
    folder: str | os.PathLike[str], network: Network | Mapping[str, Network] | None = None
) -> "xarray.Dataset":
    """The run in a folder as an `xarray.Dataset` of dask arrays: nothing of it is read before it is computed.

    ``open_dataset("runs").to_zarr("map.zarr")`` writes a result that no memory holds, ``.mean("seed").compute()``
    reduces it. Missing points are NaN.

    Args:
        folder: of `vgjax.sweep`.
        network: as for `vgjax.load`.

    Raises:
        ImportError: xarray or dask is not installed.
        ValueError: a folder that holds no run, or not one piece of it; and when it is computed, a damaged piece.
    """
    import_xarray()
    try:
        import dask.array  # noqa: F401
    except ImportError:
        raise ImportError("a run that is read lazily needs dask: pip install 'vgjax[zarr]'") from None
    run = open_run(folder, network)
    there = {place for place in run.outline.places() if (run.folder / f"{place.name}.npz").is_file()}
    arrays = shaped(run.outline, [_lazy(run, i, there) for i in range(len(run.outline.sizes))])
    return run.outline.result(arrays, {}, set(run.outline.places()) - there)._labelled(arrays)


def _lazy(run: Run, network: int, there: set[Place]) -> dict[str, Any]:
    """One network's variables as dask arrays of shape ``(seeds, points, ...)``; none without a piece."""
    import dask
    import dask.array

    outline = run.outline
    mine = [place for place in there if place.network == network]
    if not mine:
        return {}
    like = _whole_piece(run, min(mine))
    kinds_of = {n: a.dtype if len(there) == outline.pieces else np.result_type(np.float32, a) for n, a in like.items()}

    def block(place: Place, name: str, read: Any) -> Any:
        rows = outline.rows(place)
        shape = (rows.stop - rows.start, *like[name].shape[1:])
        if place not in there:
            return dask.array.full(shape, np.nan, kinds_of[name])
        return dask.array.from_delayed(read[place][name], shape, like[name].dtype).astype(kinds_of[name])

    read = {place: dask.delayed(_whole_piece)(run, place) for place in mine}
    numbers = range(outline.chunks[network])
    return {
        name: dask.array.stack(
            [
                dask.array.concatenate([block(Place(network, seed, i), name, read) for i in numbers])
                for seed in range(outline.seeds)
            ]
        )
        for name in like
    }


def _whole_piece(run: Run, place: Place) -> Arrays:
    found = run.read(place)
    if found is None:
        path = str(run.folder / f"{place.name}.npz")
        raise ValueError(f"folder must hold whole pieces, got a damaged {path!r}: call the sweep again, which mends it")
    return found
