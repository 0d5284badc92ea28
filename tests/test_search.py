"""Batched search equals simple searches written for one image."""

import math

import pytest
import torch
from torch import Tensor

from captionmill.data.vocabulary import END, START
from captionmill.stages.decoding.decoder import Decoder, DecoderConfig, State
from captionmill.stages.decoding.search import DecodedCaption, search_captions

MAX_LENGTH = 7
Beam = tuple[float, tuple[int, ...], State]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Random, with weights large enough that captions differ and end at different lengths."""
    torch.manual_seed(3)
    decoder = Decoder(
        DecoderConfig(feature_dim=8, vocab_size=30, embed_dim=16, hidden_dim=32, dropout=0.5, feature_dropout=0.3)
    ).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)
        decoder.to_logits.bias[END] += 1.5
    return decoder


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(5))


def greedy(decoder: Decoder, features: Tensor) -> tuple[int, ...]:
    """The highest allowed logit at each step, for one image [1, D]."""
    state, word, words = decoder.start(features), torch.tensor([START]), []
    for step in range(MAX_LENGTH):
        logits, state = decoder.step(word, state)
        ranked = logits[0].argsort(descending=True).tolist()
        chosen = next(index for index in ranked if index not in (0, 1, 3) and not (step == 0 and index == END))
        if chosen == END:
            break
        words.append(chosen)
        word = torch.tensor([chosen])
    return tuple(words)


def beam_one_image(decoder: Decoder, features: Tensor, beam_size: int, length_penalty: float = 0.0) -> tuple[int, ...]:
    """Beam search for one image [1, D] with plain lists: ended captions stay in the beam with their score."""

    def score_of(beam: Beam) -> float:
        return beam[0] / math.pow(len(beam[1]) - 1, length_penalty)

    beams: list[Beam] = [(0.0, (START,), decoder.start(features))]
    for step in range(MAX_LENGTH + 1):
        candidates: list[Beam] = []
        for score, words, state in beams:
            if words[-1] == END:
                candidates.append((score, words, state))
                continue
            logits, after = decoder.step(torch.tensor([words[-1]]), state)
            for index, value in enumerate(logits[0].log_softmax(0).tolist()):
                if index in (0, 1, 3) or (step == 0 and index == END) or (step == MAX_LENGTH and index != END):
                    continue
                candidates.append((score + value, (*words, index), after))
        beams = sorted(candidates, key=score_of, reverse=True)[:beam_size]
    return tuple(word for word in beams[0][1] if word not in (START, END))


@torch.inference_mode()
def test_beam_of_one_equals_greedy(decoder: Decoder, features: Tensor) -> None:
    decoded = search_captions(decoder, features, beam_size=1, max_length=MAX_LENGTH)
    expected = [greedy(decoder, features[row : row + 1]) for row in range(len(features))]
    assert [caption.words for caption in decoded] == expected
    assert len(set(expected)) > 20
    assert len({len(words) for words in expected}) > 2


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("beam_size", [2, 3, 5, 10])
@torch.inference_mode()
def test_batched_beam_equals_one_image_beam(
    decoder: Decoder, features: Tensor, beam_size: int, length_penalty: float
) -> None:
    def search(rows: Tensor) -> list[DecodedCaption]:
        return search_captions(decoder, rows, beam_size=beam_size, max_length=MAX_LENGTH, length_penalty=length_penalty)

    decoded = search(features)
    assert [caption.words for caption in decoded] == [
        beam_one_image(decoder, features[row : row + 1], beam_size, length_penalty) for row in range(len(features))
    ]
    alone = [search(row[None])[0] for row in features]
    assert [caption.words for caption in decoded] == [caption.words for caption in alone]


@torch.inference_mode()
def test_log_probabilities_are_those_of_teacher_forcing(decoder: Decoder, features: Tensor) -> None:
    for row, caption in enumerate(search_captions(decoder, features, beam_size=3, max_length=MAX_LENGTH)):
        words = torch.tensor([[START, *caption.words]])
        expected = decoder(features[row : row + 1], words).log_softmax(-1)[0]
        values = [expected[step, word].item() for step, word in enumerate(caption.words)]
        assert caption.log_probabilities == pytest.approx(values, abs=1e-4)
        assert caption.confidence == pytest.approx(math.exp(sum(values) / len(values)), abs=1e-4)


def test_a_caption_that_never_ends_is_cut_and_marked(features: Tensor) -> None:
    torch.manual_seed(0)
    endless = Decoder(
        DecoderConfig(feature_dim=8, vocab_size=6, embed_dim=4, hidden_dim=4, dropout=0.0, feature_dropout=0.0)
    ).eval()
    with torch.no_grad():
        endless.to_logits.bias[END] = -100
    for caption in search_captions(endless, features[:3], beam_size=3, max_length=5):
        assert caption.cut
        assert len(caption.words) == 5


def test_special_words_are_never_chosen_and_no_caption_is_empty(features: Tensor) -> None:
    torch.manual_seed(0)
    tempted = Decoder(
        DecoderConfig(feature_dim=8, vocab_size=6, embed_dim=4, hidden_dim=4, dropout=0.0, feature_dropout=0.0)
    ).eval()
    with torch.no_grad():
        tempted.to_logits.bias[:4] = 50
    for beam_size in (1, 2, 4, 9):
        decoded = search_captions(tempted, features[:4], beam_size=beam_size, max_length=5)
        assert all(len(caption.words) == 1 and caption.words[0] in (4, 5) for caption in decoded)


@torch.inference_mode()
def test_a_length_penalty_makes_captions_longer(decoder: Decoder, features: Tensor) -> None:
    def mean_length(length_penalty: float) -> float:
        found = search_captions(decoder, features, beam_size=5, max_length=MAX_LENGTH, length_penalty=length_penalty)
        return sum(len(caption.words) for caption in found) / len(found)

    assert mean_length(0.0) < mean_length(0.7) < mean_length(2.0)
