"""A store with several views per image keeps each as it was written, and reads as their mean."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from builders import damage, make_rows, make_spec, make_store

from captionmill.data.errors import SpecMismatchError, StoreDamageError
from captionmill.data.features.export import export_features
from captionmill.data.features.file import FORMAT_VERSION, VIEWS_VERSION
from captionmill.data.features.merge import merge_stores
from captionmill.data.features.repair import repair_store
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter, PartWriter

KEYS = ["a.jpg", "b.jpg", "c.jpg"]
SPEC = make_spec(views="six")
ROWS = make_rows(3, dim=6 * 8)
VIEWS = ROWS.reshape(3, 6, 8)
MEANS = VIEWS.mean(axis=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "f.h5", KEYS, ROWS, SPEC)


def version_of(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file.attrs["format_version"])


def test_each_view_is_kept_and_a_row_is_their_mean(path: Path) -> None:
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store.read_views([2, 0]), VIEWS[[2, 0]])
    np.testing.assert_allclose(store.read([2, 0]), MEANS[[2, 0]], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(store["b.jpg"], store.read([1])[0])
    blocks = list(store.blocks(block_rows=2))
    assert len(blocks) > 1
    for keys, rows in blocks:
        np.testing.assert_array_equal(rows, store.read([store.position(key) for key in keys]))
    for positions, rows, damaged in store.sound_blocks(None, 2):
        np.testing.assert_array_equal(rows, store.read(positions))
        assert damaged == []


def test_only_a_store_with_several_views_is_of_the_new_version(path: Path, tmp_path: Path) -> None:
    assert version_of(path) == VIEWS_VERSION
    assert version_of(make_store(tmp_path / "one.h5", KEYS, make_rows(3))) == FORMAT_VERSION
    assert version_of(make_store(tmp_path / "flip.h5", KEYS, make_rows(3), make_spec(views="flip"))) == FORMAT_VERSION
    one = FeatureStore.open(tmp_path / "one.h5")
    np.testing.assert_array_equal(one.read_views([1])[:, 0], one.read([1]))


def test_views_in_float16_have_a_mean_in_float16(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f.h5", SPEC, dtype="float16", made_by={}) as writer:
        writer.add(KEYS, ROWS)
    rows = FeatureStore.open(tmp_path / "f.h5").read([0, 1, 2])
    assert rows.dtype == np.float16
    np.testing.assert_allclose(rows, MEANS, atol=2e-3)


def test_a_row_is_damaged_if_any_of_its_views_is(path: Path) -> None:
    damage(path, "b.jpg")
    store = FeatureStore.open(path)
    assert store.verify() == ["b.jpg"]
    for read in (store.read, store.read_views):
        with pytest.raises(StoreDamageError, match=r"the row of b\.jpg is damaged"):
            read([0, 1])
    assert repair_store(path).rows_dropped == ("b.jpg",)
    np.testing.assert_array_equal(FeatureStore.open(path).read_views([0, 1]), VIEWS[[0, 2]])


def test_parts_and_merged_stores_keep_each_view(path: Path, tmp_path: Path) -> None:
    with PartWriter(path, "part-000001-00000", SPEC, dtype="float32", made_by={}) as parts:
        parts.add(["b.jpg"], ROWS[:1])
    other = make_store(tmp_path / "g.h5", ["d.jpg"], ROWS[1:2], SPEC)
    merge_stores([path, other], tmp_path / "all.h5")
    merged = FeatureStore.open(tmp_path / "all.h5")
    assert merged.verify() == []
    np.testing.assert_array_equal(merged.read_views(range(4)), VIEWS[[0, 0, 2, 1]])
    assert version_of(tmp_path / "all.h5") == VIEWS_VERSION


def test_rows_of_other_views_do_not_mix(path: Path) -> None:
    with pytest.raises(SpecMismatchError, match="views: six, not two"):
        FeatureWriter(path, make_spec(views="two"), dtype="float32", made_by={})
    with FeatureWriter(path, SPEC, dtype="float32", made_by={}) as writer, pytest.raises(ValueError, match="need rows"):
        writer.add(["d.jpg"], ROWS[:1, :8])


def test_an_export_holds_the_means(path: Path, tmp_path: Path) -> None:
    export_features(path, tmp_path / "rows.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), FeatureStore.open(path).read([0, 1, 2]))
    export_features(path, tmp_path / "rows.parquet")
    table = pd.read_parquet(tmp_path / "rows.parquet")
    np.testing.assert_array_equal(np.stack(list(table["features"])), np.load(tmp_path / "rows.npy"))
