"""The rows that are closest to a query: their order, damaged rows, and that blocks change nothing."""

from pathlib import Path

import numpy as np
import pytest
from builders import damage, make_matching_model, make_model, make_rows, make_spec, make_store

from captionmill.data.errors import InputError, SpecMismatchError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.ranking.matcher import Matcher, MatcherConfig
from captionmill.stages.ranking.opened import open_matched
from captionmill.stages.ranking.retrieve import CosineBound, embedded_blocks, find_closest, load_matcher

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


@pytest.mark.parametrize("directions", [1, 3, 16])
def test_no_cosine_is_above_its_bound(directions: int) -> None:
    generator = np.random.default_rng(directions)
    config = MatcherConfig(feature_dim=48, vocab_size=5, embed_dim=4, joint_dim=16)
    shapes = {
        "to_joint.weight": (16, 48),
        "to_joint.bias": (16,),
        "embedding.weight": (5, 4),
        "words_to_joint.weight": (16, 4),
        "words_to_joint.bias": (16,),
    }
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    rows = generator.random((500, 48), dtype=np.float32) * generator.choice([0.01, 1, 100], (500, 1))
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation[3] = 0
    rows = np.concatenate([rows, mean[None], mean[None] * (1 + 1e-6)]).astype(np.float32)
    matcher = Matcher(config, {**weights, "feature_mean": mean, "feature_std": deviation})
    loose = 0
    for row in range(20):
        query = matcher.embed_images(rows[row : row + 1])[0]
        cosines, bounds = matcher.embed_images(rows) @ query, CosineBound(matcher, query, directions).of(rows)
        assert (cosines <= bounds + 1e-4).all()
        loose += int((bounds < 0.9).sum())
    assert loose > 3000  # most rows are known not to be near, so that the bound is of use


def test_a_search_of_many_blocks_finds_what_all_cosines_show(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    spec = make_spec()
    rows = generator.normal(size=(1700, spec.feature_dim)).astype(np.float32)
    rows[600:605] = rows[3]  # equal ones, in other blocks than the first
    path = make_store(tmp_path / "f.h5", [f"{number:04d}.jpg" for number in range(1700)], rows)
    opened = open_matched(path, make_matching_model(tmp_path / "model", spec))
    matcher = load_matcher(opened)
    for row in (3, 900, 1699):
        query = matcher.embed_images(rows[row : row + 1])[0]
        cosines = (matcher.embed_images(rows) @ query).round(5)
        found = find_closest(opened.store, matcher, query, 12, left_out=row)
        order = [other for other in np.lexsort((np.arange(1700), -cosines)).tolist() if other != row]
        assert found.positions.tolist() == order[:12]


def test_of_equal_rows_the_first_is_found_whatever_is_beside_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    spec = make_spec()
    rows = np.tile(generator.normal(size=(400, spec.feature_dim)).astype(np.float32), (4, 1))
    path = make_store(tmp_path / "f.h5", [f"{number:04d}.jpg" for number in range(1600)], rows)
    matcher = load_matcher(open_matched(path, make_matching_model(tmp_path / "model", spec)))
    for row in range(0, 400, 40):
        found = find_closest(FeatureStore.open(path), matcher, matcher.embed_images(rows[row : row + 1])[0], 3)
        assert found.positions.tolist() == [row, row + 400, row + 800]
        assert found.cosines.tolist() == [1, 1, 1]


def test_a_row_without_a_bound_is_compared() -> None:
    matcher = Matcher(
        MatcherConfig(feature_dim=4, vocab_size=5, embed_dim=4, joint_dim=4),
        {
            "feature_mean": np.zeros(4, np.float32),
            "feature_std": np.ones(4, np.float32),
            "to_joint.weight": np.eye(4, dtype=np.float32),
            "to_joint.bias": np.zeros(4, np.float32),
            "embedding.weight": np.zeros((5, 4), np.float32),
            "words_to_joint.weight": np.zeros((4, 4), np.float32),
            "words_to_joint.bias": np.zeros(4, np.float32),
        },
    )
    rows = np.array([[1e30, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
    bounds = CosineBound(matcher, np.array([1, 0, 0, 0], np.float32), 2).of(rows)
    assert not bounds[0] < 1
    assert bounds[1:] == pytest.approx([1, 0])


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
