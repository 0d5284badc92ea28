"""Training draws one view of an image per step; whatever reads the image otherwise takes the mean of its views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TINY_TRAINING, make_rows, make_spec, make_store, make_task, require_same_weights

from captionmill.data.errors import InputError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.pipeline.explain import features_of_image
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.encoding.extract import extract
from captionmill.stages.portable.networks import portable_encoder
from captionmill.stages.settings import ExtractConfig
from captionmill.stages.training.features import FeatureFeeder
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.state import EpochResult
from captionmill.stages.training.train import train

KEYS = [f"{number:02d}.jpg" for number in range(10)]


@pytest.fixture
def task(tmp_path: Path) -> tuple[Path, Path]:
    """Ten images with six views each, and their captions."""
    _, captions = make_task(tmp_path)
    features = make_store(tmp_path / "six.h5", KEYS, make_rows(10, dim=6 * 8), make_spec(views="six"))
    return features, captions


@pytest.mark.parametrize("memory_limit", [1_000_000, 0])
def test_a_feeder_returns_the_views_that_are_named_or_their_mean(task: tuple[Path, Path], memory_limit: int) -> None:
    store, images, cpu = FeatureStore.open(task[0]), np.array([3, 0, 3]), torch.device("cpu")
    feeder = FeatureFeeder(store, KEYS, cpu, with_views=True, memory_limit=memory_limit)
    np.testing.assert_array_equal(
        feeder.rows(images, torch.tensor([5, 1, 0])), store.read_views(images)[[0, 1, 2], [5, 1, 0]]
    )
    np.testing.assert_allclose(feeder.rows(images), store.read(images), rtol=1e-6)
    plain = FeatureFeeder(store, KEYS, cpu, memory_limit=memory_limit)
    np.testing.assert_array_equal(plain.rows(images), store.read(images))


def test_a_training_on_views_is_resumed_to_the_bit(task: tuple[Path, Path], tmp_path: Path) -> None:
    config = replace(TINY_TRAINING, self_critical_epochs=1, matcher_epochs=1)
    train(*task, tmp_path / "whole", config)

    def stop(result: EpochResult) -> None:
        raise KeyboardInterrupt

    for _ in config.max_epochs, config.self_critical_epochs:
        with pytest.raises(KeyboardInterrupt):
            train(*task, tmp_path / "model", config, listener=TrainListener(on_epoch=stop))
    train(*task, tmp_path / "model", config)
    require_same_weights(tmp_path / "whole", tmp_path / "model")


def test_a_training_on_views_is_not_one_on_their_means(task: tuple[Path, Path], tmp_path: Path) -> None:
    store = FeatureStore.open(task[0])
    means = make_store(tmp_path / "means.h5", KEYS, store.read(range(10)))
    train(*task, tmp_path / "views", TINY_TRAINING)
    train(means, task[1], tmp_path / "means", TINY_TRAINING)
    views, of_means = (read_bundle(tmp_path / name).tensors for name in ("views", "means"))
    np.testing.assert_array_equal(views["feature_mean"], of_means["feature_mean"])
    assert not np.array_equal(views["to_hidden.weight"], of_means["to_hidden.weight"])


def test_an_image_gets_the_row_that_a_store_has_of_it(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    config = ExtractConfig("scenes-resnet14", str(thin_weights), image_size=32, views="six", engine="torch")
    extract(photos, tmp_path / "f.h5", config)
    store = FeatureStore.open(tmp_path / "f.h5")
    assert store.read_views([0]).shape == (1, 6, 2048)
    row = features_of_image(photos / store.keys[0], store.spec, config, thin_weights)
    np.testing.assert_array_equal(row, store.read([0])[0])


def test_an_encoder_of_crops_is_not_exported(thin_weights: Path) -> None:
    encoder = build_encoder(ExtractConfig("scenes-resnet14", str(thin_weights), image_size=32, views="six"))
    with pytest.raises(InputError, match=r"`views` six cannot be exported: leave it out .`with_encoder`."):
        portable_encoder(encoder)
