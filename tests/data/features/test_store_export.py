"""An export holds the rows of the store to the bit, and their keys."""

import secrets
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from builders import make_rows, make_spec, make_store

from captionmill.data.errors import InputError, StoreError
from captionmill.data.features.export import FeaturesExportSummary, export_features
from captionmill.data.features.file import Features
from captionmill.data.features.spec import StoredDtype
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.tables.formats import write_captions
from captionmill.data.tables.rows import CaptionRow

KEYS = sorted(["NA", "007", 'a, "b".jpg', "c/ü 日本.jpg", "two\nlines.jpg", "carriage\rreturn.jpg", " space .jpg"])


def write(path: Path, dtype: StoredDtype = "float32", part_count: int = 0) -> Features:
    """A store of seven rows, the last ones in parts of their own: its rows."""
    rows = make_rows(len(KEYS)).astype(dtype)
    main_count = len(KEYS) - part_count
    with FeatureWriter(path, make_spec(), dtype=dtype, made_by={}) as writer:
        writer.add(KEYS[:main_count], rows[:main_count])

    def interrupted(row: int) -> None:
        with FeatureWriter(path, make_spec(), dtype=dtype, made_by={}) as writer:
            writer.add([KEYS[row]], rows[row : row + 1])
            raise KeyboardInterrupt

    for row in range(main_count, len(KEYS)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(row)
    assert FeatureStore.open(path).part_count == part_count
    return rows


def write_empty(path: Path, dtype: StoredDtype) -> None:
    """A store whose every row was dropped."""
    write(path, dtype)
    with FeatureWriter(path, make_spec(), dtype=dtype, made_by={}) as writer:
        writer.drop(KEYS)
    assert len(FeatureStore.open(path)) == 0


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_parquet(path: Path) -> tuple[list[str], npt.NDArray[np.floating]]:
    """The keys and the rows [N, D]."""
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["key", "features"]
    rows = [row.values.to_numpy() for row in table["features"]]
    return table["key"].to_pylist(), np.stack(rows)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("part_count", [0, 3])
def test_npy_and_csv_hold_the_rows_and_their_keys(tmp_path: Path, dtype: StoredDtype, part_count: int) -> None:
    rows = write(tmp_path / "f.h5", dtype, part_count)
    output = tmp_path / "out" / "f.npy"
    assert export_features(tmp_path / "f.h5", output) == FeaturesExportSummary(7, (output, tmp_path / "out" / "f.csv"))
    exported = np.load(output)
    assert exported.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(exported, rows)
    table = read_table(tmp_path / "out" / "f.csv")
    assert list(table.columns) == ["row", "key"]
    assert table["row"].tolist() == ["0", "1", "2", "3", "4", "5", "6"]
    assert table["key"].tolist() == KEYS
    assert names_in(tmp_path / "out") == ["f.csv", "f.npy"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("part_count", [0, 3])
def test_parquet_holds_the_rows_and_their_keys(tmp_path: Path, dtype: StoredDtype, part_count: int) -> None:
    rows = write(tmp_path / "f.h5", dtype, part_count)
    output = tmp_path / "out" / "f.parquet"
    assert export_features(tmp_path / "f.h5", output) == FeaturesExportSummary(7, (output,))
    keys, exported = read_parquet(output)
    assert keys == KEYS
    assert exported.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(exported, rows)
    assert names_in(tmp_path / "out") == ["f.parquet"]


def test_pandas_reads_the_parquet_file(tmp_path: Path) -> None:
    rows = write(tmp_path / "f.h5")
    export_features(tmp_path / "f.h5", tmp_path / "f.parquet")
    frame = pd.read_parquet(tmp_path / "f.parquet")
    assert frame["key"].tolist() == KEYS
    np.testing.assert_array_equal(np.stack(frame["features"].tolist()), rows)


def test_more_rows_than_a_block_arrive_whole_and_are_counted(tmp_path: Path) -> None:
    keys, rows = [f"{number:04d}" for number in range(5000)], make_rows(5000)
    make_store(tmp_path / "f.h5", keys, rows)
    for name in ("f.npy", "f.parquet"):
        steps: list[tuple[str, int, int]] = []
        export_features(tmp_path / "f.h5", tmp_path / name, progress=lambda *step, steps=steps: steps.append(step))
        assert steps == [("export", 4096, 5000), ("export", 5000, 5000)]
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), rows)
    assert read_table(tmp_path / "f.csv")["key"].tolist() == keys
    exported_keys, exported = read_parquet(tmp_path / "f.parquet")
    assert exported_keys == keys
    np.testing.assert_array_equal(exported, rows)


def test_npy_grows_block_by_block_and_through_no_memory_map(tmp_path: Path) -> None:
    """On a full disk writing to a map of a file ends the process with SIGBUS, and writing to the file is an error."""
    make_store(tmp_path / "f.h5", [f"{number:05d}" for number in range(10_000)], make_rows(10_000))
    sizes: list[int] = []

    def progress(label: str, done: int, total: int) -> None:
        sizes.extend(path.stat().st_size for path in tmp_path.glob("*.partial"))

    export_features(tmp_path / "f.h5", tmp_path / "f.npy", progress=progress)
    assert sizes[0] < sizes[1] < (tmp_path / "f.npy").stat().st_size


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_empty_store_makes_an_npy_of_no_rows(tmp_path: Path, dtype: StoredDtype) -> None:
    write_empty(tmp_path / "f.h5", dtype)
    assert export_features(tmp_path / "f.h5", tmp_path / "f.npy").rows == 0
    exported = np.load(tmp_path / "f.npy")
    assert (exported.shape, exported.dtype) == ((0, 8), np.dtype(dtype))
    assert (tmp_path / "f.csv").read_text() == "row,key\n"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_empty_store_makes_a_parquet_of_no_rows(tmp_path: Path, dtype: StoredDtype) -> None:
    write_empty(tmp_path / "f.h5", dtype)
    assert export_features(tmp_path / "f.h5", tmp_path / "f.parquet").rows == 0
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert (table.num_rows, table.column_names) == (0, ["key", "features"])


@pytest.mark.parametrize(("output", "there"), [("f.npy", "f.npy"), ("f.npy", "f.csv"), ("f.parquet", "f.parquet")])
def test_a_file_that_exists_is_replaced_only_with_overwrite(tmp_path: Path, output: str, there: str) -> None:
    rows = write(tmp_path / "f.h5")
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError) as error:
        export_features(tmp_path / "f.h5", tmp_path / output)
    assert str(error.value) == f"{tmp_path / there}: exists already; pass `overwrite` to replace it"
    assert (tmp_path / there).read_text() == "mine"
    assert names_in(tmp_path) == sorted({"f.h5", there})
    export_features(tmp_path / "f.h5", tmp_path / output, overwrite=True)
    if output == "f.npy":
        np.testing.assert_array_equal(np.load(tmp_path / output), rows)
        assert read_table(tmp_path / "f.csv")["key"].tolist() == KEYS
    else:
        np.testing.assert_array_equal(read_parquet(tmp_path / output)[1], rows)


@pytest.mark.parametrize(("output", "there"), [("f.npy", "f.csv"), ("f.parquet", "f.parquet")])
def test_a_table_of_captions_is_not_replaced(tmp_path: Path, output: str, there: str) -> None:
    write(tmp_path / "f.h5")
    rows = [CaptionRow("a.jpg", "a person wrote this", None, status="corrected")]
    write_captions(tmp_path / there, rows, "csv" if there == "f.csv" else "parquet", with_alternatives=False)
    before = (tmp_path / there).read_bytes()
    with pytest.raises(InputError, match=r"is a table of captions and would be overwritten; name another output"):
        export_features(tmp_path / "f.h5", tmp_path / output, overwrite=True)
    assert (tmp_path / there).read_bytes() == before
    assert names_in(tmp_path) == sorted({"f.h5", there})


def test_new_rows_never_lie_beside_the_keys_of_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "f.h5")
    (tmp_path / "f.npy").write_bytes(b"older rows")
    (tmp_path / "f.csv").write_text("row,key\n0,older.jpg\n")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / ".f.csv.0000000000000000.partial").mkdir()  # so that no file can be written there
    with pytest.raises(OSError, match=r"/f\.csv"):
        export_features(tmp_path / "f.h5", tmp_path / "f.npy", overwrite=True)
    assert np.load(tmp_path / "f.npy").ndim == 2
    assert not (tmp_path / "f.csv").exists()


@pytest.mark.parametrize("name", ["f.csv", "f", "f.h5", "f.npy.gz"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(InputError) as error:
        export_features(tmp_path / "f.h5", tmp_path / name, overwrite=True)
    assert str(error.value) == f"{tmp_path / name}: features are exported as .npy or .parquet"
    assert names_in(tmp_path) == ["f.h5"]
    assert (tmp_path / "f.h5").read_bytes() == before


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_no_store_is_an_error_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="no such feature store"):
        export_features(tmp_path / "f.h5", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "f.h5")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError) as error:
        export_features(tmp_path / "f.h5", tmp_path / "f.parquet")
    assert str(error.value) == "Parquet needs the package pyarrow; run: pip install 'captionmill[parquet]'"
    assert names_in(tmp_path) == ["f.h5"]
