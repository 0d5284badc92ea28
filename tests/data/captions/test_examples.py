"""What training is fed with: every caption once an epoch, the right words, and the features that belong to them."""

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import TINY_TRAINING, make_rows, make_store, make_task

from captionmill.data.captions.examples import BUCKET_BATCHES, CaptionDataset, Indices
from captionmill.data.captions.splits import DAMAGED_FEATURES, Splits
from captionmill.data.captions.vocabulary import END, PAD, START, UNK, Vocabulary
from captionmill.data.errors import StoreError
from captionmill.data.features.store import FeatureStore
from captionmill.stages.training.features import FeatureFeeder, prepare_ahead
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.state import LoopConfig
from captionmill.stages.training.train import train

CAPTIONS = {
    "a.jpg": ["A dog runs on the beach.", "a zebra"],
    "b.jpg": ["...", "the dog's ball", "a dog " * 20],
    "c.jpg": ["?!"],
    "d.jpg": ["dog"],
}
VOCABULARY = Vocabulary.build(
    [text for texts in CAPTIONS.values() for text in texts if "zebra" not in text], min_count=1
)


def make_dataset(*, keys: str = "abcd", max_length: int = 8) -> CaptionDataset:
    return CaptionDataset.of(CAPTIONS, [f"{key}.jpg" for key in keys], VOCABULARY, max_length=max_length)


def make_long_dataset(count: int, *, longest: int = 20) -> CaptionDataset:
    lengths = np.random.default_rng(3).integers(1, longest + 1, count)
    captions = {f"{number}": ["dog " * length] for number, length in enumerate(lengths)}
    return CaptionDataset.of(captions, list(captions), VOCABULARY, max_length=longest)


def test_words_are_those_of_the_vocabulary_cut_and_padded() -> None:
    dataset = make_dataset()
    assert len(dataset) == 5  # captions without a word are left out
    assert dataset.images.tolist() == [0, 0, 1, 1, 3]
    kept = ["A dog runs on the beach.", "a zebra", "the dog's ball", "a dog a dog a dog a dog", "dog"]
    for chosen in ([0, 1, 2, 3, 4], [4], [3, 1], [2, 2]):
        cut = {3}  # the decoder is not to learn that a caption ends there
        expected = [[START, *VOCABULARY.encode(kept[number]), *[END] * (number not in cut)] for number in chosen]
        longest = max(map(len, expected))
        words = dataset.words(np.array(chosen))
        assert words.dtype == np.int64
        assert words.tolist() == [row + [PAD] * (longest - len(row)) for row in expected]
        assert dataset.count_words(np.array(chosen)) == sum(len(row) - 1 for row in expected)
    assert dataset.words(np.array([1])).tolist() == [[START, VOCABULARY.index("a"), UNK, END]]


def test_images_without_a_caption_in_words_give_an_empty_dataset() -> None:
    dataset = make_dataset(keys="c")
    assert len(dataset) == 0
    assert dataset.plan_epoch(4, np.random.default_rng(0)) == []


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 8), (7, 8), (8, 8), (1000, 8), (1001, 7), (50, 1)])
def test_an_epoch_has_every_caption_once(count: int, batch_size: int) -> None:
    dataset = make_long_dataset(count)
    plan = dataset.plan_epoch(batch_size, np.random.default_rng(0))
    assert sorted(np.concatenate(plan).tolist()) == list(range(count))
    assert all(0 < len(batch) <= batch_size for batch in plan)
    assert len(plan) <= -(-count // batch_size) + count // (batch_size * BUCKET_BATCHES)


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    dataset = make_long_dataset(300)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in dataset.plan_epoch(8, np.random.default_rng((seed, epoch)))]

    first = plan(0, 1)
    np.random.seed(1)  # nor on anybody else's numbers
    torch.manual_seed(1)
    assert plan(0, 1) == first
    assert plan(0, 2) != first != plan(1, 1)


def test_captions_of_like_length_share_a_batch() -> None:
    dataset = make_long_dataset(1000)
    plan = dataset.plan_epoch(10, np.random.default_rng(0))
    padded = sum(dataset.words(batch).size for batch in plan)
    words = sum(dataset.count_words(batch) + len(batch) for batch in plan)
    assert words / padded > 0.93  # 0.55 in batches drawn at random
    lengths = [dataset.words(batch).shape[1] for batch in plan]
    assert lengths != sorted(lengths)


def test_a_row_that_is_not_finite_is_named_before_training(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    rows, keys = make_rows(10), FeatureStore.open(features).keys
    rows[3, 2] = 12345
    make_store(tmp_path / "damaged.h5", keys, rows)
    content = (tmp_path / "damaged.h5").read_bytes()
    number, infinity = np.float32(12345).tobytes(), np.float32(np.inf).tobytes()
    assert content.count(number) == 1
    (tmp_path / "damaged.h5").write_bytes(content.replace(number, infinity))
    heard: list[Splits] = []
    train(
        tmp_path / "damaged.h5",
        captions,
        tmp_path / "model",
        TINY_TRAINING,
        listener=TrainListener(on_splits=heard.append),
    )
    assert heard[0].unmatched == {DAMAGED_FEATURES: ["03.jpg"]}
    assert "03.jpg" not in heard[0].train


def test_features_come_from_memory_or_from_the_store_alike(tmp_path: Path) -> None:
    store = FeatureStore.open(make_store(tmp_path / "f.h5", [f"{number}" for number in range(9)], make_rows(9)))
    keys = ["7", "2", "5", "0"]
    cpu = torch.device("cpu")
    feeders = [FeatureFeeder(store, keys, cpu), FeatureFeeder(store, keys, cpu, memory_limit=0)]
    for chosen in ([0], [3, 1, 1, 2], [2, 2]):
        for one in feeders:
            rows = one.rows(np.array(chosen))
            np.testing.assert_array_equal(rows.numpy(), [store[keys[image]] for image in chosen])
            assert rows.dtype == torch.float32


def test_a_training_that_streams_ends_as_one_from_memory(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = type(TINY_TRAINING)(**{**vars(TINY_TRAINING), "self_critical_epochs": 1})
    train(features, captions, tmp_path / "memory", config)
    streaming = TrainListener(loop=LoopConfig(memory_limit=0))
    train(features, captions, tmp_path / "stream", config, listener=streaming)
    for pattern in ("*.safetensors", "bundle.json"):
        (memory,), (stream,) = ((tmp_path / name).glob(pattern) for name in ("memory", "stream"))
        assert memory.read_bytes() == stream.read_bytes()
    losses = [pd.read_csv(tmp_path / name / "history.csv")["loss"].tolist() for name in ("memory", "stream")]
    assert losses[0] == losses[1]


def test_what_is_prepared_ahead_keeps_its_order_and_is_done_by_another_thread() -> None:
    batches = [np.array([number]) for number in range(30)]
    threads: set[str] = set()

    def prepare(batch: Indices) -> int:
        threads.add(threading.current_thread().name)
        return int(batch[0])

    assert list(prepare_ahead(prepare, batches)) == list(range(30))
    assert len(threads) == 1
    assert threads != {threading.current_thread().name}
    assert list(prepare_ahead(prepare, [])) == []


def test_an_error_of_the_thread_comes_where_its_batch_would_have() -> None:
    batches = [np.array([number]) for number in range(30)]
    prepared: list[int] = []

    def prepare(batch: Indices) -> int:
        prepared.append(int(batch[0]))
        if batch[0] == 7:
            raise StoreError("gone")
        return int(batch[0])

    taken: list[int] = []
    with pytest.raises(StoreError, match="gone"):
        taken.extend(prepare_ahead(prepare, batches))
    taken = []
    stream = prepare_ahead(prepare, batches)
    for _ in range(7):
        taken.append(next(stream))
    with pytest.raises(StoreError, match="gone"):
        next(stream)
    assert taken == list(range(7))
    assert max(prepared) < 15  # nothing is prepared for nobody


def test_whoever_stops_taking_stops_the_thread() -> None:
    stream = prepare_ahead(lambda batch: int(batch[0]), [np.array([number]) for number in range(1000)])
    assert next(stream) == 0
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feeder")]
