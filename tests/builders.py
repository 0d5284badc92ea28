"""What several test modules build: specs, rows, stores."""

import math
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary
from captionmill.data.features.file import Features
from captionmill.data.features.parts import part_paths
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.models.bundle import Model, read_bundle, write_model
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.machine import has_fast_int8
from captionmill.stages.ranking.consensus import CaptionIndex
from captionmill.stages.ranking.matcher import MatcherConfig
from captionmill.stages.ranking.ngrams import FlatCaptions
from captionmill.stages.ranking.packed import pack_ranker
from captionmill.stages.ranking.ranker import Ranker, RankerConfig
from captionmill.stages.ranking.regression import ImageRegression, Reduction
from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig
from captionmill.stages.training.reranking.network import MatcherNetwork

TESTS = Path(__file__).parent
ROOT = TESTS.parent
"""The checkout."""
FLICKR8K = ROOT.resolve().parent / "shared" / "flickr8k"
"""The data set, where somebody has put it."""
needs_fast_int8 = pytest.mark.skipif(not has_fast_int8(), reason="this CPU is not faster in 8 bits")
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220), "yellow": (240, 220, 40)}


def make_spec(**changes: object) -> FeatureSpec:
    values = FeatureSpec("resnet50", "imagenet1k_v1", "a" * 64, "crop", 224, 256, feature_dim=8).to_json()
    return FeatureSpec.from_json(values | changes)


def thin_config(weights: Path, **changes: object) -> ExtractConfig:
    """An extraction by the smallest network with torch, whose `weights` are the fixture's; it starts at once."""
    usual: dict[str, object] = {"preprocess": "squash", "image_size": 32, "precision": "fp32", "device": "cpu"}
    options: Any = {**usual, "engine": "torch", **changes}
    return ExtractConfig("scenes-resnet14", weights=str(weights), **options)


def make_rows(count: int, *, dim: int = 8, seed: int = 0) -> Features:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def make_store(path: Path, keys: list[str], rows: Features, spec: FeatureSpec | None = None) -> Path:
    with FeatureWriter(path, spec or make_spec(feature_dim=rows.shape[1]), dtype="float32", made_by={}) as writer:
        writer.add(keys, rows)
    return path


def add_part(path: Path, keys: Sequence[str] = (), rows: Features | None = None, drop: Sequence[str] = ()) -> Path:
    """What a writer that was interrupted leaves: a part."""

    def interrupted() -> None:
        with FeatureWriter(path, make_spec(), dtype="float32", made_by={}) as writer:
            writer.drop(drop)
            if rows is not None:
                writer.add(keys, rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    return part_paths(path)[-1]


def column_start(path: Path, name: str) -> int:
    """Where a column of numbers begins in a store's file."""
    with h5py.File(path, "r") as file:
        offset: int = file[name].id.get_offset()
    return offset


def damage(path: Path, *keys: str) -> bytes:
    """Flip a bit in the middle of each row of `keys`; what the file held before."""
    before = path.read_bytes()
    store, content = FeatureStore.open(path), bytearray(before)
    offset = column_start(path, "features")
    row_bytes = np.dtype(store.dtype).itemsize * store.spec.row_length
    for key in keys:
        content[offset + store.position(key) * row_bytes + row_bytes // 2] ^= 1
    path.write_bytes(content)
    return before


def listen_to_ctrl_c() -> None:
    """For a child process: a shell that starts the tests in the background tells it to ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def draw_photos(folder: Path) -> Path:
    """Eight one-coloured images, two of each colour, and one file that is no image."""
    (folder / "more").mkdir(parents=True)
    for number, (name, colour) in enumerate([*COLOURS.items(), *COLOURS.items()]):
        path = folder / ("more" if number % 2 else "") / f"{name}_{number}.{'png' if number < 4 else 'JPG'}"
        Image.new("RGB", (40 + number, 30), colour).save(path, "PNG" if number < 4 else "JPEG")
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


TINY_TRAINING = TrainConfig(
    min_count=1,
    embed_dim=8,
    hidden_dim=12,
    batch_size=3,
    learning_rate=0.05,
    max_epochs=2,
    max_length=6,
    search=SearchConfig(beam_size=1, max_length=6),
    device="cpu",
)
"""A training of milliseconds on `make_task`; dropout and all else as everywhere."""


def make_task(folder: Path, *, train: int = 8, val: int = 2) -> tuple[Path, Path]:
    """A store and a captions file of some images, two captions each; the images of "val" are like the first ones."""
    keys = [f"{number:02d}.jpg" for number in range(train + val)]
    colours, things = ("red", "blue", "green", "grey"), ("dog", "cat", "boat")
    lines = ["image,caption,split"]
    for number, key in enumerate(keys):
        words = f"{colours[number % train % 4]} {things[number % train % 3]}"
        split = "train" if number < train else "val"
        lines += [f"{key},a {words},{split}", f"{key},there is a {words},{split}"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    rows = make_rows(len(keys))
    rows[train:] = rows[:val] + 0.01
    return make_store(folder / "features.h5", keys, rows), folder / "captions.csv"


def make_model(
    folder: Path,
    spec: FeatureSpec,
    *,
    scores: dict[str, float] | None = None,
    splits: dict[str, list[str]] | None = None,
    seed: int = 0,
) -> Path:
    """A small decoder with random weights for features of `spec`."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary([*SPECIAL_WORDS, "a", "red", "blue", "dog", "cat", "läuft", "on", "grass"])
    config = DecoderConfig(spec.feature_dim, len(vocabulary), 8, 8, 0.0, 0.0)
    tensors = {name: tensor.numpy() for name, tensor in Decoder(config).state_dict().items()}
    splits = splits or {"train": [], "val": [], "test": []}
    write_model(folder, Model(vars(config), vocabulary, spec, {}, splits, scores or {}, {}, tensors))
    return folder


def require_same_weights(first: Path, second: Path) -> None:
    """The decoders of two models are equal to the bit."""
    expected, found = (read_bundle(folder).tensors for folder in (first, second))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensor, found[name])


def make_ranker(features: npt.NDArray[np.float32], vocab_size: int, config: RankerConfig = RankerConfig()) -> Ranker:
    """Of training images with `features` [N, D], two captions each, with a matcher of random weights."""
    torch.manual_seed(0)
    scale = features.mean(axis=0), features.std(axis=0)
    dim = features.shape[1]
    reduction = Reduction.fit(features, *scale) if dim < 64 else Reduction(*scale, np.eye(dim, 64, dtype=np.float32))
    words = vocab_size - len(SPECIAL_WORDS)
    captions = FlatCaptions.of([[4 + number % words, 5, 4 + 2 * number % words] for number in range(2 * len(features))])
    matcher = MatcherNetwork(MatcherConfig(features.shape[1], vocab_size, embed_dim=6, joint_dim=4)).trained()
    regression = ImageRegression.fit(reduction, reduction.reduce(features))
    index = CaptionIndex.of(captions, np.repeat(np.arange(len(features)), 2))
    return Ranker(config, regression, captions, np.full(len(features), 2), index, vocab_size, matcher)


def make_matching_model(folder: Path, spec: FeatureSpec) -> Path:
    """A model whose matcher takes each of the first 8 features to be a word: the first "a", the last "grass"."""
    model = read_bundle(make_model(folder, spec))
    size = len(model.vocabulary)
    matcher = MatcherNetwork(MatcherConfig(spec.feature_dim, size, embed_dim=8, joint_dim=8))
    words = torch.zeros(size, 8)
    words[len(SPECIAL_WORDS) :] = torch.eye(8)
    for layer in (matcher.to_joint, matcher.words_to_joint):
        layer.load_state_dict({"weight": torch.eye(8, layer.in_features), "bias": torch.zeros(8)})
    matcher.embedding.load_state_dict({"weight": words})
    ranker = replace(make_ranker(make_rows(10, dim=spec.feature_dim), size), matcher=matcher.trained())
    write_model(folder, replace(model, ranker=pack_ranker(ranker)))
    return folder


def plain_bleu(candidates: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus, written out; with the tiny summands of the reference implementation."""
    matched, offered, lengths, nearest = [0] * 4, [0] * 4, 0, 0
    for tokens, texts in zip(candidates, references, strict=True):
        lengths += len(tokens)
        nearest += min((abs(len(text) - len(tokens)), len(text)) for text in texts)[1]
        for order in range(4):
            mine, *others = (
                Counter(zip(*(words[start:] for start in range(order + 1)), strict=False)) for words in (tokens, *texts)
            )
            matched[order] += sum(min(count, max(other[ngram] for other in others)) for ngram, count in mine.items())
            offered[order] += mine.total()
    penalty = math.exp(min(0.0, 1 - (nearest + 1e-9) / (lengths + 1e-15)))
    precisions = [(match + 1e-15) / (count + 1e-9) for match, count in zip(matched, offered, strict=True)]
    return [math.prod(precisions[:order]) ** (1 / order) * penalty for order in range(1, 5)]
