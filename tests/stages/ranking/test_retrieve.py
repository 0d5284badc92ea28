"""The rows that are closest to a query: their order, damaged rows, and that blocks change nothing."""

from pathlib import Path

import numpy as np
import pytest
from builders import damage, make_matching_model, make_model, make_rows, make_spec, make_store

from captionmill.data.errors import InputError, SpecMismatchError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.ranking.opened import open_matched
from captionmill.stages.ranking.retrieve import embedded_blocks, find_closest, load_matcher

KEYS = [f"{number:02d}.jpg" for number in range(20)]


def test_the_closest_rows_are_those_of_all_rows_sorted_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    rows = make_rows(20)
    rows[7] = rows[3] * 2  # the same direction: the first in the store comes first
    path = make_store(tmp_path / "f.h5", KEYS, rows)
    opened = open_matched(path, make_matching_model(tmp_path / "model", make_spec()))
    matcher, query = load_matcher(opened), rows[3] / np.linalg.norm(rows[3])
    cosines = rows @ query / np.linalg.norm(rows, axis=1)
    order = sorted(range(20), key=lambda row: (-round(float(cosines[row]), 5), row))
    found = find_closest(opened.store, matcher, query, 6)
    assert found.positions.tolist() == order[:6]
    assert found.cosines == pytest.approx(cosines[order[:6]], abs=1e-5)
    assert (order[:2], found.damaged) == ([3, 7], ())
    damage(path, KEYS[7])
    found = find_closest(FeatureStore.open(path), matcher, query, 30, left_out=3)
    assert found.positions.tolist() == order[2:]
    assert found.damaged == (KEYS[7],)


def test_blocks_give_the_sound_rows_in_their_order(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, make_rows(20))
    damage(path, KEYS[4], KEYS[19])
    store = FeatureStore.open(path)
    blocks = list(store.sound_blocks([0, 4, 5, 19, 2], 2))
    assert [block.tolist() for block, _, _ in blocks] == [[0], [5], [2]]
    assert [lost for _, _, lost in blocks] == [[KEYS[4]], [KEYS[19]], []]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows, _ in blocks]), make_rows(20)[[0, 5, 2]])
    matcher = load_matcher(open_matched(path, make_matching_model(tmp_path / "model", make_spec())))
    small, whole = (
        np.concatenate([own for _, own, _ in embedded_blocks(store, matcher, None, size)]) for size in (3, 64)
    )
    np.testing.assert_allclose(small, whole, atol=1e-6)


def test_a_model_without_a_matcher_or_of_other_features_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "f.h5", KEYS, make_rows(20))
    model = make_model(tmp_path / "model", make_spec())
    with pytest.raises(InputError) as error:
        open_matched(path, model)
    assert str(error.value) == (
        f"{model}: has no matcher, which compares images with words; train it again, with `matcher_epochs` above 0"
    )
    other = make_matching_model(tmp_path / "other", make_spec(image_size=320))
    assert read_bundle(other).ranker is not None
    with pytest.raises(SpecMismatchError):
        open_matched(path, other)
