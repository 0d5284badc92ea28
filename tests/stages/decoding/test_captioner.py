"""Captions of cached features: what the search found, in words, in blocks that memory holds."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, make_rows, make_spec, make_store

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.data.errors import InputError, ModelError
from captionmill.data.features.file import Features
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle, write_model
from captionmill.stages.decoding.captioner import Caption, Captioner, CaptionFinder, decode_rows
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.folded import FoldedDecoder
from captionmill.stages.decoding.search import State
from captionmill.stages.settings import SearchConfig

VOCABULARY = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", *"abcdefgh"])


class SmallMemoryDecoder(FoldedDecoder):
    """A decoder on a machine that holds the state of so many images and no more."""

    capacity = 10**9
    message = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 8 TB"

    def start(self, features: Features) -> State:
        if len(features) > self.capacity:
            raise RuntimeError(self.message)
        return super().start(features)


@pytest.fixture
def decoder() -> SmallMemoryDecoder:
    config = DecoderConfig(8, len(VOCABULARY), 6, 10, dropout=0.5, feature_dropout=0.4)
    random = np.random.default_rng(1)
    weights = {
        name: (1.5 * random.standard_normal(shape)).astype(np.float32) for name, shape in config.shapes().items()
    }
    return SmallMemoryDecoder(config, weights | {"feature_std": np.ones(8, np.float32)})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    keys = [f"{number:02d}.jpg" for number in range(30)]
    return FeatureStore.open(make_store(tmp_path / "features.h5", keys, make_rows(30)))


def spell_all(decoded: Iterable[tuple[str, Caption]]) -> list[list[str]]:
    """Key and texts of each image; confidences differ in the eighth digit between blocks of different sizes."""
    return [[key, best.text, *(other.text for other in best.alternatives)] for key, best in decoded]


@pytest.mark.parametrize("sample", [False, True])
def test_when_memory_runs_out_the_block_is_halved_and_no_caption_changes(
    decoder: SmallMemoryDecoder, store: FeatureStore, sample: bool, caplog: pytest.LogCaptureFixture
) -> None:
    search = SearchConfig(beam_size=2, alternatives=1, max_length=6, sample=sample)
    expected = spell_all(decode_rows(CaptionFinder(decoder, VOCABULARY, search), store, store.keys))
    assert [key for key, *_ in expected] == list(store.keys)
    decoder.capacity = 8
    seen: list[tuple[int, int]] = []

    def progress(label: str, done: int, total: int, *, note: str = "", left_s: float | None = None) -> None:
        seen.append((done, total))

    with caplog.at_level(logging.WARNING):
        found = decode_rows(CaptionFinder(decoder, VOCABULARY, search), store, store.keys, progress=progress)
        assert spell_all(found) == expected
    assert caplog.messages == [f"not enough memory: continuing with {count} images at once" for count in (15, 7)]
    assert seen == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]


def test_memory_that_does_not_hold_one_image_is_one_line(decoder: SmallMemoryDecoder, store: FeatureStore) -> None:
    decoder.capacity = 0
    with pytest.raises(
        InputError, match=r"^not enough memory for one image: use a smaller `beam_size` or `device` cpu$"
    ):
        list(decode_rows(CaptionFinder(decoder, VOCABULARY, SearchConfig()), store, store.keys))


def test_other_errors_are_not_taken_for_want_of_memory(decoder: SmallMemoryDecoder, store: FeatureStore) -> None:
    decoder.capacity, decoder.message = 0, "shapes do not fit"
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        list(decode_rows(CaptionFinder(decoder, VOCABULARY, SearchConfig()), store, store.keys))


def test_captions_are_the_same_in_blocks_of_any_size(decoder: SmallMemoryDecoder, store: FeatureStore) -> None:
    for search in (SearchConfig(beam_size=3, max_length=6), SearchConfig(sample=True, alternatives=2, max_length=6)):
        texts = []
        for rows in (1, 7, 768):
            decoded = decode_rows(CaptionFinder(decoder, VOCABULARY, search), store, store.keys, block_rows=rows)
            texts.append(spell_all(decoded))
        assert texts[0] == texts[1] == texts[2]


def test_cut_captions_and_alternatives_are_told(decoder: SmallMemoryDecoder, store: FeatureStore) -> None:
    search = SearchConfig(beam_size=4, alternatives=3, max_length=4)
    found = list(decode_rows(CaptionFinder(decoder, VOCABULARY, search), store, store.keys))
    assert len(found) == len(store.keys)
    for _, best in found:
        assert len(best.alternatives) == 3
        assert len({best.text, *(other.text for other in best.alternatives)}) == 4
        for caption in (best, *best.alternatives):
            assert caption.cut == (len(caption.text.split()) == 4)
            assert 0 < caption.confidence <= 1


@pytest.mark.parametrize(
    "change",
    [{"dropout": 1.5}, {"layers": 0}, {"feature_scaling": "standardizf"}, {"image_input": "x"}],
)
def test_a_damaged_setting_of_a_decoder_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    model = make_model(tmp_path, make_spec())
    bundle = read_bundle(model)
    write_model(model, replace(bundle, decoder_config=bundle.decoder_config | change))
    with pytest.raises(ModelError, match="weights and configuration do not fit each other"):
        Captioner.load(model, device="cpu")


def test_weights_that_are_not_finite_give_no_empty_captions(tmp_path: Path) -> None:
    model = make_model(tmp_path, make_spec())
    bundle = read_bundle(model)
    weight = bundle.tensors["to_hidden.weight"].copy()
    weight[0, 0] = np.nan
    write_model(model, replace(bundle, tensors=dict(bundle.tensors) | {"to_hidden.weight": weight}))
    with pytest.raises(ModelError, match="are not finite"):
        Captioner.load(model, device="cpu")
