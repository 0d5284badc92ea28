"""Exports the rows of a feature store for other tools: NumPy with a table of keys, or Parquet."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captionmill.data.csv_tables import write_table
from captionmill.data.errors import InputError
from captionmill.data.features.store import FeatureStore
from captionmill.data.files import replace_atomically
from captionmill.data.parquet import require_pyarrow
from captionmill.data.paths import AnyPath
from captionmill.data.progress import no_progress
from captionmill.data.tables.formats import require_other_output

ExportProgress = Callable[[str, int, int], None]
"""Called with a label, and how many rows of how many are done."""


@dataclass(frozen=True)
class FeaturesExportSummary:
    """What was written."""

    rows: int
    paths: tuple[Path, ...]


def export_features(
    path: AnyPath,
    output: AnyPath,
    *,
    overwrite: bool = False,
    progress: ExportProgress = no_progress,
) -> FeaturesExportSummary:
    """Write the store at `path` to `output`, block by block.

    OUT.npy: [N, D] in the store's dtype, and beside it OUT.csv with the columns row and key. OUT.parquet: the columns
    key (string) and features (a list of D numbers each). Of several views of an image, the mean is exported. Raises
    StoreError if the store cannot be read, InputError for another suffix, an output that exists (unless `overwrite`) or
    is a table of captions, or Parquet without the package pyarrow.
    """
    path, output = Path(path), Path(output)
    writers = {".npy": _write_npy, ".parquet": _export_parquet}
    if output.suffix not in writers:
        raise InputError(f"{output}: features are exported as .npy or .parquet")
    paths = (output, output.with_suffix(".csv")) if output.suffix == ".npy" else (output,)
    for written in paths:
        if written.exists() and not overwrite:
            raise InputError(f"{written}: exists already; pass `overwrite` to replace it")
        require_other_output(written, path)
    store = FeatureStore.open(path)
    writers[output.suffix](store, output, progress)
    return FeaturesExportSummary(len(store), paths)


def _write_npy(store: FeatureStore, output: Path, progress: ExportProgress) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(store.dtype)),
        "fortran_order": False,
        "shape": (len(store), store.spec.feature_dim),
    }
    table_path = output.with_suffix(".csv")
    # no memory map: with one, a full disk ends the process with SIGBUS
    with replace_atomically(output) as partial_path, partial_path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for keys, block in store.blocks():
            file.write(block.tobytes())
            done += len(keys)
            progress("export", done, len(store))
        file.flush()
        table_path.unlink(missing_ok=True)  # a kill or a full disk must not leave the old table beside the new rows
    write_table(table_path, ("row", "key"), enumerate(store.keys))


def _export_parquet(store: FeatureStore, output: Path, progress: ExportProgress) -> None:
    pyarrow, parquet = require_pyarrow()
    kind = pyarrow.float16() if store.dtype == "float16" else pyarrow.float32()
    dim = store.spec.feature_dim
    schema = pyarrow.schema([("key", pyarrow.string()), ("features", pyarrow.list_(kind, dim))])
    with replace_atomically(output) as partial_path, parquet.ParquetWriter(partial_path, schema) as writer:
        done = 0
        for keys, block in store.blocks():
            values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.reshape(-1), kind), dim)
            writer.write_table(pyarrow.table([pyarrow.array(keys, pyarrow.string()), values], schema))
            done += len(keys)
            progress("export", done, len(store))
