"""A run's folder as a data set that is read piece by piece, when it is asked for: also one larger than memory."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgjax.checks import kinds
from vgjax.ensembles.assembly import Arrays, Outline, Slot, shaped
from vgjax.ensembles.folder import Run, open_run, read_piece
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
    there, missing = run.files()[0], set(run.outline.slots())
    missing -= there.keys()
    each = [_lazy(run, i, there, not missing) for i in range(len(run.outline.sizes))]
    some = next(filter(None, each), {})
    each = [mine or {name: _nothing(a.shape, a.dtype) for name, a in some.items()} for mine in each]
    arrays = {name: a.rechunk(_uniform(run.outline, a.shape)) for name, a in shaped(run.outline, each).items()}
    return run.outline.result(arrays, {}, missing, run.errors())._labelled(arrays)


def _uniform(outline: Outline, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks of one size, as zarr wants them: of one network and seed, as many points as a piece has, or a few more."""
    axes = outline.shape
    each = max(1, min(outline.sizes) // max(1, math.prod(axes[1:])))
    lead = (*([1] if outline.several else []), 1, *([each, *axes[1:]] if axes else []))
    return (*lead, *shape[len(lead) :])


def _lazy(run: Run, network: int, there: Mapping[Slot, Path], complete: bool) -> dict[str, Any]:
    """One network's variables as dask arrays of shape ``(seeds, points, ...)``; none without a piece."""
    import dask
    import dask.array

    outline, mine = run.outline, sorted(slot for slot in there if slot.network == network)
    like = next((piece for slot in mine if (piece := run.read(slot)) is not None), {})
    kinds_of = {name: a.dtype if complete else np.result_type(np.float32, a.dtype) for name, a in like.items()}
    read = {slot: dask.delayed(_whole_piece)(str(run.folder), run.digest, slot.name) for slot in mine}

    def block(name: str, slot: Slot) -> Any:
        rows = outline.rows(slot)
        shape = (rows.stop - rows.start, *like[name].shape[1:])
        if slot not in there:
            return _nothing(shape, kinds_of[name])
        return dask.array.from_delayed(read[slot][name], shape, like[name].dtype).astype(kinds_of[name])

    def of_seed(name: str, seed: int) -> Any:
        return dask.array.concatenate([block(name, Slot(network, seed, i)) for i in range(outline.chunks[network])])

    return {name: dask.array.stack([of_seed(name, seed) for seed in range(outline.seeds)]) for name in like}


def _nothing(shape: tuple[int, ...], dtype: Any) -> Any:
    """NaN. Not `dask.array.full`, a part of which is asked for as if it were there already (dask 2026.8)."""
    import dask
    import dask.array

    return dask.array.from_delayed(dask.delayed(np.full)(shape, np.nan, dtype), shape, dtype)


def _whole_piece(folder: str, digest: str, name: str) -> Arrays:
    found = read_piece(Path(folder), digest, name)
    if found is None:
        path = str(Path(folder) / f"{name}.npz")
        raise ValueError(f"folder must hold whole pieces, got {path!r} that is damaged or gone: call the sweep again")
    return found
