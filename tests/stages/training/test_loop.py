"""The arithmetic of training, and what becomes of data and settings that hardly make one."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from builders import TINY_TRAINING, make_rows, make_store, make_task

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.captions.vocabulary import PAD
from captionmill.data.errors import AnnotationError, StoreError, TrainingError
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.machine import has_fast_bf16
from captionmill.stages.settings import TrainConfig
from captionmill.stages.training.checkpoint import read_checkpoint
from captionmill.stages.training.corpus import choose_epochs, choose_vocabulary, count_words
from captionmill.stages.training.losses import LENGTH_GROUPS, WordLogits, cross_entropy, weighted_cross_entropy
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.self_critical import forbid
from captionmill.stages.training.state import EpochResult, LoopConfig, Training, learning_rate_factor
from captionmill.stages.training.train import train


def make_training(features: Path, captions: Path, config: TrainConfig) -> Training:
    store, annotations = FeatureStore.open(features), read_annotations(captions)
    splits = choose_splits(annotations, store.keys)
    vocabulary = choose_vocabulary(count_words(annotations.captions, splits.train), min_count=config.min_count)
    return Training(store, annotations.captions, splits, vocabulary, config)


def make_network() -> WordLogits:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(8, 11, 6, 10, dropout=0, feature_dropout=0, layers=2, image_input="every"))
    return WordLogits(decoder, torch.float32)


def losses(
    network: WordLogits, features: torch.Tensor, words: torch.Tensor, smoothing: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    logits, targets, _ = network(features, words)
    return cross_entropy(logits, targets, label_smoothing=smoothing)


def weighted_loss(
    network: WordLogits, features: torch.Tensor, words: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    logits, targets, rows = network(features, words, LENGTH_GROUPS)
    return weighted_cross_entropy(logits, targets, weights[rows])


WORDS = torch.tensor([[1, 5, 6, 7, 2], [1, 9, 2, 0, 0], [1, 4, 10, 2, 0], [1, 3, 2, 0, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_is_the_cross_entropy_over_words(smoothing: float) -> None:
    network, features = make_network(), torch.randn(4, 8)
    smoothed, entropy = losses(network, features, WORDS, smoothing)
    logits, targets = network.decoder(features, WORDS[:, :-1]).flatten(0, 1), WORDS[:, 1:].flatten()
    assert isinstance(logits, torch.Tensor)

    def plainly(label_smoothing: float) -> torch.Tensor:
        return F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum", label_smoothing=label_smoothing)

    torch.testing.assert_close(entropy, plainly(0.0))
    torch.testing.assert_close(smoothed, plainly(smoothing))


def test_however_many_words_a_step_has_its_matrices_have_few_shapes() -> None:
    network = make_network()
    shapes = set()
    network.decoder.to_logits.register_forward_hook(lambda module, inputs, output: shapes.add(tuple(output.shape)))
    for captions in range(1, len(WORDS) + 1):
        losses(network, torch.randn(captions, 8), WORDS[:captions])
        weighted_loss(network, torch.randn(captions, 8), WORDS[:captions], torch.randn(captions))
    assert shapes == {(32, 11)}, "a kernel is made and kept for every shape"


def gradients_of(network: WordLogits, features: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    losses(network, features, words)[0].backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def test_padding_contributes_nothing() -> None:
    network, features = make_network(), torch.randn(4, 8)
    padded = torch.cat([WORDS, torch.zeros(4, 7, dtype=torch.long)], dim=1)
    torch.testing.assert_close(losses(network, features, padded), losses(network, features, WORDS))
    torch.testing.assert_close(gradients_of(network, features, padded), gradients_of(network, features, WORDS))
    nothing = gradients_of(network, features[:1], torch.zeros(1, 4, dtype=torch.long))
    assert len(nothing) == len(list(network.parameters()))  # of a process without captions: zeros, but of every tensor
    assert not any(bool(gradient.any()) for gradient in nothing)


def test_weights_count_captions_and_share_their_images() -> None:
    network, features = make_network(), torch.randn(2, 8)
    weights = torch.tensor([0.5, -2.0, 0.0, 1.5])
    weighted, entropy = (weighted_loss(network, features, WORDS, each) for each in (weights, torch.ones(4)))
    logits = forbid(network.decoder(features.repeat_interleave(2, dim=0), WORDS[:, :-1]))  # as they are drawn
    each = F.cross_entropy(logits.transpose(1, 2), WORDS[:, 1:], ignore_index=PAD, reduction="none").sum(1)
    torch.testing.assert_close(weighted, (each * weights).sum())
    torch.testing.assert_close(entropy, each.sum())


def test_the_learning_rate_rises_stays_below_its_top_and_falls_to_nothing() -> None:
    shares = [learning_rate_factor(step, 100) for step in range(101)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0.0, abs=1e-12)
    assert 0 < shares[99] < 0.001
    assert all(earlier > later for earlier, later in itertools.pairwise(shares[10:]))
    assert 0 < learning_rate_factor(0, 1) <= 1  # a training of one step takes one


@pytest.mark.parametrize(
    ("captions", "epochs"), [(0, 100), (1, 100), (300, 60), (1500, 27), (7500, 12), (30_000, 6), (5_000_000, 6)]
)
def test_few_captions_are_passed_over_more_often(captions: int, epochs: int) -> None:
    assert choose_epochs(TrainConfig(), captions) == (epochs, epochs // 2)
    assert choose_epochs(TrainConfig(init=Path("m")), captions)[0] == min(epochs, 10)


def test_epochs_and_patience_that_nobody_set_fit_the_captions(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    unset = dataclasses.replace(TINY_TRAINING, max_epochs=None)
    for config, epochs, patience in (
        (unset, 100, 50),
        (dataclasses.replace(unset, patience=2), 100, 2),
        (TINY_TRAINING, 2, 3),
        (dataclasses.replace(TINY_TRAINING, max_epochs=9), 9, 4),
    ):
        training = make_training(*task, config)
        assert (training.max_epochs, training.config.patience) == (epochs, patience)
    still = dataclasses.replace(unset, patience=2, learning_rate=0.0)
    assert len(train(*task, tmp_path / "model", still).history) == 3
    assert read_bundle(tmp_path / "model").training["max_epochs"] == 100


def test_each_epoch_tells_its_last_learning_rate(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(TINY_TRAINING, batch_size=8, self_critical_epochs=1, self_critical_learning_rate=0.01)
    history = train(features, captions, tmp_path / "model", config).history
    expected = [0.05 * learning_rate_factor(1, 4), 0.05 * learning_rate_factor(3, 4), 0.01 * learning_rate_factor(0, 1)]
    assert [result.learning_rate for result in history] == pytest.approx(expected)


def test_a_training_begins_with_its_forget_bias(tmp_path: Path) -> None:
    training = make_training(*make_task(tmp_path), dataclasses.replace(TINY_TRAINING, forget_bias=1.5, layers=2))
    for layer in range(2):
        biases = [training.decoder.lstm.get_parameter(f"{name}_l{layer}") for name in ("bias_ih", "bias_hh")]
        gates = (biases[0] + biases[1]).chunk(4)
        assert gates[1].tolist() == [1.5] * 12
        assert all(bool((gate.abs() < 1).all()) for gate in (gates[0], *gates[2:]))


def test_the_first_loss_is_that_of_guessing(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    saved = []

    def keep_state(result: EpochResult) -> None:
        checkpoint = read_checkpoint(tmp_path / "model.training")
        assert checkpoint
        saved.append(checkpoint.state["training"])

    config = dataclasses.replace(TINY_TRAINING, learning_rate=0.0, max_epochs=1)
    summary = train(features, captions, tmp_path / "model", config, listener=TrainListener(on_epoch=keep_state))
    assert [result.loss for result in summary.history] == pytest.approx([2.6], abs=0.2)  # the logarithm of 14 words
    assert pd.read_csv(tmp_path / "model" / "samples.csv")["key"].tolist() == ["08.jpg", "09.jpg"]
    assert [(state["epoch"], state["step"], state["sums"]) for state in saved] == [(2, 0, [0.0, 0.0])]


COLUMNS = ["key", "epoch", "caption", "references"]


def test_a_first_score_early_in_a_long_epoch_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    task = make_task(tmp_path)  # 16 captions
    config = dataclasses.replace(TINY_TRAINING, batch_size=1)

    def told(name: str, long_epoch: int) -> list[object]:
        heard: list[object] = []
        listener = TrainListener(
            on_first_score=heard.append,
            on_epoch=lambda result: heard.append(f"epoch {result.epoch}"),
            loop=LoopConfig(long_epoch=long_epoch),
        )
        train(*task, tmp_path / name, config, listener=listener)
        return heard

    first, *epochs = told("scored", 16)
    assert isinstance(first, float)
    assert epochs == told("not scored", 17) == ["epoch 1", "epoch 2"]
    scored, not_scored = (read_bundle(tmp_path / name).tensors for name in ("scored", "not scored"))
    assert all(np.array_equal(tensor, not_scored[name]) for name, tensor in scored.items())


@pytest.mark.parametrize(("shown", "keys"), [(0, 0), (1, 1), (8, 3)])
def test_as_many_sample_captions_are_written_down_as_asked_for(tmp_path: Path, shown: int, keys: int) -> None:
    features, captions = make_task(tmp_path, val=3)
    listener = TrainListener(loop=LoopConfig(samples_shown=shown))
    train(features, captions, tmp_path / "model", TINY_TRAINING, listener=listener)
    samples = pd.read_csv(tmp_path / "model" / "samples.csv")
    assert (samples.columns.tolist(), len(samples), samples["key"].nunique()) == (COLUMNS, 2 * keys, keys)


@pytest.mark.skipif(not has_fast_bf16(), reason="this CPU multiplies no bf16 matrices")
def test_arithmetic_in_bf16_trains_every_kind_of_decoder(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    for image_input, layers in (("init", 1), ("first", 2), ("every", 2)):
        changes: dict[str, Any] = {"image_input": image_input, "layers": layers, "self_critical_epochs": 1}
        config = dataclasses.replace(TINY_TRAINING, max_epochs=1, **changes)
        history = train(features, captions, tmp_path / image_input, config).history
        assert 0 < history[0].loss < 3
        assert len(history) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e37}, r"in epoch 1; pass a lower `learning_rate`, and `restart`"),
        (
            {"learning_rate": 1e37, "batch_size": 99, "max_epochs": 1},
            r"in epoch 1; pass a lower `learning_rate`, and `restart`",
        ),
        (
            {"self_critical_epochs": 2, "self_critical_learning_rate": 1e37},
            r"in epoch 3; pass a lower `self_critical_learning_rate`, and `restart`",
        ),
    ],
    ids=["cross entropy", "in the only step", "self-critical"],
)
def test_a_network_that_is_not_finite_ends_the_training_with_advice(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    listener = TrainListener(loop=LoopConfig(images_per_step=2))
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(
        TINY_TRAINING, **{"hidden_dim": 256, "tie_weights": False, "weight_decay": 1e3} | changes
    )
    with pytest.raises(TrainingError, match=message) as error:
        train(features, captions, tmp_path / "model", config, listener=listener)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def write_captions(folder: Path, *rows: str) -> tuple[Path, Path]:
    """Captions of 00.jpg to 05.jpg as "number,caption,split", and a store of all six."""
    keys = [f"{number:02d}.jpg" for number in range(6)]
    path = folder / "captions.csv"
    path.write_text("\n".join(["image,caption,split", *(f"0{row[0]}.jpg{row[1:]}" for row in rows)]) + "\n")
    return make_store(folder / "features.h5", keys, make_rows(6)), path


TWO_PHASES = dataclasses.replace(TINY_TRAINING, self_critical_epochs=1)


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (("0,dog,train", "1,dog,train", "2,dog,val", "3,dog,val"), {}),
        (("0,a dog,train", "1,a cat,val", "2,a dog,val"), {}),
        (("0,a dog,train", "1,a cat,val"), {}),
        (("0,a dog,train", "1,a dog here,train", "2,a cat,val"), {"batch_size": 1}),
        (("0,a dog,train", "1,a dog here,train", "2,a cat,val"), {"batch_size": 10_000}),
        (("0,one two three four,train", "1,five six seven,train", "2,one two three,val"), {"max_length": 1}),
        (("0,a dog,train", "1,...,train", "2,a dog,val", "3,?,val"), {}),
        (("0,a dog,train", "1,a cat,train", "2,a dog,val"), {"dropout": 1.0, "feature_dropout": 1.0}),
        (("0,a dog,train", "1,a cat,train", "2,a dog,val"), {"clip_norm": 0.001, "self_critical_samples": 2}),
    ],
    ids=[
        "one word",
        "one image",
        "one image each",
        "batches of one",
        "one batch",
        "all too long",
        "captions without words",
        "all dropped",
        "all clipped",
    ],
)
def test_the_least_that_can_be_trained_on_trains(
    tmp_path: Path, rows: tuple[str, ...], changes: dict[str, Any]
) -> None:
    features, captions = write_captions(tmp_path, *rows)
    summary = train(features, captions, tmp_path / "model", dataclasses.replace(TWO_PHASES, **changes))
    assert [result.phase for result in summary.history] == ["cross entropy", "cross entropy", "self-critical"]
    assert all(
        bool(torch.from_numpy(tensor).isfinite().all()) for tensor in read_bundle(tmp_path / "model").tensors.values()
    )
    assert pd.read_csv(tmp_path / "model" / "history.csv").notna().to_numpy().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("0,a dog,train", "1,a cat,train"), "no image to choose the best epoch with"),
        (("0,a dog,val", "1,a cat,val"), "no image to train on"),
        (("0,a dog,test",), "no image to train on"),
    ],
)
def test_an_empty_split_is_an_error(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    features, captions = write_captions(tmp_path, *rows)
    with pytest.raises(AnnotationError, match=message):
        train(features, captions, tmp_path / "model", TINY_TRAINING)
    assert not (tmp_path / "model.training").exists()


def test_captions_without_a_word_are_an_error(tmp_path: Path) -> None:
    features, captions = write_captions(tmp_path, "0,...,train", "1,?!,train", "2,a cat,val")
    with pytest.raises(AnnotationError, match="no image to train on: none of the 1 with captions"):
        train(features, captions, tmp_path / "model", TINY_TRAINING)


def test_training_without_features_is_an_error(tmp_path: Path) -> None:
    _, captions = write_captions(tmp_path, "0,a dog,train", "1,a cat,val")
    with pytest.raises(StoreError, match="no such feature store"):
        train(tmp_path / "nothing.h5", captions, tmp_path / "model", TINY_TRAINING)
