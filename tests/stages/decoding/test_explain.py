"""Each number of an explanation is the network's own, and its caption the captioner's by every search setting."""

import itertools
import math
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import make_ranker, make_rows, make_store
from torch import Tensor

from captionmill.data.captions.vocabulary import END, PAD, SPECIAL_WORDS, START, UNK, Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.stages.decoding.beam_tree import BeamNode, BeamTree, TracedStep
from captionmill.stages.decoding.captioner import CaptionFinder, decode_rows
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder, TorchSteps, choose_steps
from captionmill.stages.decoding.ensemble import join_decoders
from captionmill.stages.decoding.explain import Explanation, explain_features
from captionmill.stages.decoding.reranking import MARGIN, Choice, candidate_search, guide_words, weigh_images
from captionmill.stages.decoding.search import DecodedCaption, search_captions
from captionmill.stages.ranking.ranker import mean_scores
from captionmill.stages.settings import ImageInput, SearchConfig

VOCABULARY = Vocabulary([*SPECIAL_WORDS, *(f"word{index}" for index in range(4, 30))])
SEARCH = SearchConfig(beam_size=3, length_penalty=0.7, max_length=7)
ROWS = make_rows(12, seed=5)
RANKER = make_ranker(ROWS, len(VOCABULARY))
IMAGE_INPUTS: tuple[ImageInput, ...] = ("init", "first", "every")


def make_decoder(seed: int = 3, *, image_input: ImageInput = "init", layers: int = 1) -> Decoder:
    """Random, with weights large enough that captions differ and end at different lengths."""
    torch.manual_seed(seed)
    config = DecoderConfig(
        feature_dim=8,
        vocab_size=len(VOCABULARY),
        embed_dim=16,
        hidden_dim=32,
        dropout=0.5,
        feature_dropout=0.3,
        layers=layers,
        image_input=image_input,
        feature_scaling="standardize-unit",
    )
    decoder = Decoder(config)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)
        decoder.to_logits.bias[END] += 1.5
        decoder.fit_features(torch.from_numpy(ROWS.mean(0)), torch.from_numpy(ROWS.std(0)))
    return decoder.eval()


def explain(decoder: Decoder, row: int = 0, *references: str, search: SearchConfig = SEARCH) -> Explanation:
    return explain_features(choose_steps(decoder), ROWS[row], VOCABULARY, search, references)


def winner_of(tree: BeamTree) -> BeamNode:
    """The end of the caption that is given out."""
    return tree.steps[-1][tree.place]


def features_of(row: int) -> Tensor:
    return torch.from_numpy(ROWS[row])[None].float()


@pytest.mark.parametrize(("image_input", "layers"), [("init", 1), ("first", 2), ("every", 1)])
@torch.inference_mode()
def test_each_step_is_what_the_captioners_decoder_steps(image_input: ImageInput, layers: int) -> None:
    decoder = make_decoder(image_input=image_input, layers=layers)
    steps = choose_steps(decoder)
    for row in range(6):
        explanation = explain(decoder, row)
        for walk in (explanation.greedy, explanation.caption):
            state, fed = steps.start(ROWS[row : row + 1]), START
            plain = decoder(features_of(row), torch.tensor([[START, *walk.words]]))[0]
            assert len(walk.steps) >= len(walk.words) > 0
            for number, step in enumerate(walk.steps, start=1):
                numbers, state = steps.step(np.array([fed]), state)
                logits = torch.from_numpy(numbers)
                torch.testing.assert_close(logits[0], plain[number - 1], atol=1e-5, rtol=1e-5)
                assert (step.number, step.fed, step.fed_word) == (number, fed, VOCABULARY.words[fed])
                best = logits[0].topk(10)
                assert [word.index for word in step.top] == best.indices.tolist()
                assert [word.logit for word in step.top] == best.values.tolist()
                assert [word.rank for word in step.top] == list(range(1, 11))
                assert [word.word for word in step.top] == [VOCABULARY.words[i] for i in best.indices.tolist()]
                probabilities = logits[0].softmax(0)[best.indices].tolist()
                assert [word.probability for word in step.top] == pytest.approx(probabilities, rel=1e-5)
                assert step.chosen.logit == logits[0, step.chosen.index].item()
                fed = step.chosen.index


@torch.inference_mode()
def test_greedy_is_the_searchs_beam_of_one_and_the_caption_its_winner() -> None:
    decoder = make_decoder()
    lengths = set()
    for row in range(len(ROWS)):
        explanation = explain(decoder, row)
        greedy = search_captions(decoder, features_of(row), SearchConfig(beam_size=1, max_length=7))[0]
        best = search_captions(decoder, features_of(row), SearchConfig(beam_size=3, max_length=7, length_penalty=0.7))[
            0
        ]
        for walk, found in ((explanation.greedy, greedy), (explanation.caption, best)):
            assert (walk.words, walk.cut) == (found.words, found.cut)
            assert walk.confidence == pytest.approx(found.confidence, rel=1e-5)
            lengths.add(len(walk.words))
    assert len(lengths) > 2


SETTINGS: list[dict[str, Any]] = [
    {},
    {"beam_size": 1},
    {"beam_size": 4, "length_penalty": 0.0, "alternatives": 3},
    {"beam_size": 2, "length_penalty": 2.5, "max_length": 3},
    {"min_length": 4},
    {"min_length": 3, "no_repeat_ngram": 2, "alternatives": 1},
    {"no_repeat_ngram": 1, "max_length": 40},
    {"repeat_words": True, "length_penalty": 1.0},
    {"beam_size": 4, "diversity_groups": 2},
    {"beam_size": 6, "diversity_groups": 3, "diversity_strength": 4.0, "alternatives": 2, "no_repeat_ngram": 2},
    {"rerank": "both", "candidates": 7, "alternatives": 2},
    {"rerank": "consensus", "candidates": 4, "length_penalty": 0.0},
    {"sample": True},
    {"sample": True, "alternatives": 3, "seed": 7},
    {"sample": True, "temperature": 2.0, "min_length": 3, "no_repeat_ngram": 1},
    {"sample": True, "top_k": 3},
    {"sample": True, "top_p": 0.7, "temperature": 0.8, "max_length": 2},
]


def test_by_every_search_setting_200_decoders_captions_are_torchs_and_explained_word_for_word(tmp_path: Path) -> None:
    assert {name for settings in SETTINGS for name in settings} == {field.name for field in fields(SearchConfig)}
    keys = ["a.jpg", "more/b.jpg", "c.jpg"]
    store = FeatureStore.open(make_store(tmp_path / "f.h5", keys, ROWS[:3]))
    kinds = itertools.cycle(itertools.product(IMAGE_INPUTS, (1, 2), (False, True)))
    captions = set()
    for seed, (image_input, layers, is_ensemble) in zip(range(200), kinds, strict=False):
        single = make_decoder(seed, image_input=image_input, layers=layers)
        decoders = [single, make_decoder(seed + 1000)] if is_ensemble else [single]
        search = SearchConfig(**{"beam_size": 3, "max_length": 7, **SETTINGS[(seed + seed // 12) % len(SETTINGS)]})
        row = seed % 3
        steps, as_on_a_gpu = choose_steps(*decoders), join_decoders([TorchSteps(decoder) for decoder in decoders])
        _, found = list(decode_rows(CaptionFinder(steps, VOCABULARY, search, (RANKER,)), store, keys))[row]
        finder = CaptionFinder(as_on_a_gpu, VOCABULARY, search, (RANKER,))
        assert next(decode_rows(finder, store, keys[row : row + 1]))[1].text == found.text
        parts = (steps, ROWS[row], VOCABULARY, search)
        explanation = explain_features(*parts, key=keys[row], rankers=[RANKER])
        tree = explanation.beam
        assert VOCABULARY.decode(explanation.caption.words) == VOCABULARY.decode(tree.words) == found.text
        assert tree.captions[tree.place] == found.text
        assert explanation.confidence == pytest.approx(found.confidence, rel=1e-4)
        assert explanation.caption.cut == tree.cut == found.cut
        choice = explanation.choice
        known = {VOCABULARY.decode(one.caption.words) for one in choice.candidates} if choice else {*tree.captions}
        assert all(other.text in known for other in found.alternatives)
        assert [node.place for node in tree.steps[-1] if node.wins] == [tree.place]
        assert not any(step.chosen.barred for step in explanation.caption.steps)
        captions.add(found.text)
    assert len(captions) > 120


@torch.inference_mode()
def test_a_choice_is_explained_by_the_scores_that_made_it() -> None:
    decoder, other = make_decoder(), make_ranker(ROWS[:8], len(VOCABULARY))
    search = SearchConfig(rerank="both", candidates=7, max_length=7, beam_size=3)
    explanation = explain_features(choose_steps(decoder), ROWS[0], VOCABULARY, search, rankers=[RANKER, other])
    choice, tree = explanation.choice, explanation.beam
    assert choice is not None
    rankers = [RANKER, other]
    weights = weigh_images(ROWS[:1], rankers, search)
    guide = guide_words(weights, rankers, search)
    (found,) = search_captions(choose_steps(decoder), ROWS[:1], candidate_search(search), guide=guide, margin=MARGIN)
    listed = [replace(found, alternatives=()), *found.alternatives]
    likelihoods = [math.fsum(caption.log_probabilities) / len(caption.words) for caption in listed]
    words_of = [caption.words for caption in listed]
    (scores,) = mean_scores(
        [one.score(ROWS[:1], own, [words_of], [likelihoods], "both") for one, own in zip(rankers, weights, strict=True)]
    )
    best_first = sorted(range(7), key=lambda place: -scores[place].total)
    assert [candidate.place for candidate in choice.candidates] == best_first
    for candidate in choice.candidates:
        score = scores[candidate.place]
        assert candidate.caption == replace(listed[candidate.place], consensus=score.consensus)
        assert astuple(candidate.score) == pytest.approx(astuple(score))
        assert tree.captions[candidate.place] == VOCABULARY.decode(candidate.caption.words)
    words = explanation.caption.words
    assert words == choice.candidates[0].caption.words
    alone = [ranker.match(ROWS[:1], [[(word,) for word in words]])[0] for ranker in (RANKER, other)]
    assert choice.word_matches == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert choice.neighbours == tuple(RANKER.strongest(ROWS[0].astype(np.float32), 5))
    assert (choice.images, choice.trust, choice.neighbours[0].image) == (12, 1.0, 0)


@torch.inference_mode()
def test_the_candidates_of_an_ensemble_are_those_of_each_of_its_decoders() -> None:
    decoders = [make_decoder(1), make_decoder(2, layers=2), make_decoder(3, image_input="every")]
    search = SearchConfig(rerank="both", candidates=4, max_length=7, beam_size=3)
    ensemble = choose_steps(*decoders)
    finder = CaptionFinder(ensemble, VOCABULARY, search, (RANKER,))
    guide = guide_words(weigh_images(ROWS, [RANKER], search), [RANKER], search)
    wide = candidate_search(search)
    own = [search_captions(choose_steps(one), ROWS, wide, guide=guide, margin=MARGIN) for one in decoders]

    def mean(caption: DecodedCaption) -> float:
        return sum(caption.log_probabilities) / len(caption.words)

    shared = 0
    for row, found in enumerate(finder.find_candidates(ROWS, [""] * len(ROWS))):
        expected: dict[tuple[int, ...], list[tuple[float, int]]] = {}
        for place, of_decoder in enumerate(own):
            for caption in [of_decoder[row], *of_decoder[row].alternatives]:
                expected.setdefault(caption.words, []).append((mean(caption), place))
        candidates = [found, *found.alternatives]
        assert [caption.words for caption in candidates] == sorted(expected, key=lambda words: -max(expected[words])[0])
        assert all((mean(one), one.decoder) == max(expected[one.words]) for one in candidates)
        shared += sum(len(likelihoods) > 1 for likelihoods in expected.values())
    assert shared
    chosen = [explain_features(ensemble, row, VOCABULARY, search, rankers=[RANKER]) for row in ROWS]
    assert len({one.choice.candidates[0].caption.decoder for one in chosen if one.choice}) > 1


def test_a_choice_says_only_what_counted() -> None:
    def choose(**settings: Any) -> Choice | None:
        search = SearchConfig(max_length=4, **settings)
        return explain_features(choose_steps(make_decoder()), ROWS[0], VOCABULARY, search, rankers=[RANKER]).choice

    consensus, matcher = choose(rerank="consensus"), choose(rerank="matcher")
    assert consensus is not None
    assert matcher is not None
    assert (len(consensus.neighbours), consensus.word_matches) == (5, ())
    assert matcher.neighbours == ()
    assert len(matcher.word_matches) == len(matcher.candidates[0].caption.words)
    assert choose(rerank="none") is choose(sample=True) is None


def test_branches_are_what_leads_to_some_captions() -> None:
    search = SearchConfig(beam_size=6, max_length=7)
    tree = explain(make_decoder(), search=search).beam
    branches = tree.branches([tree.words])
    assert [[node.wins for node in kept] for kept in branches] == [[True]] * len(tree.steps)
    for kept, all_kept in zip(branches, tree.steps, strict=True):
        assert [node for node in all_kept if node.wins] == list(kept)
    assert len(tree.steps[-1]) == 6


def test_the_tree_of_a_diverse_beam_shows_groups_and_what_they_lose() -> None:
    search = SearchConfig(beam_size=4, diversity_groups=2, diversity_strength=3.0, max_length=7)
    tree = explain(make_decoder(), search=search).beam
    first = tree.steps[0]
    assert sorted(node.group for node in first) == [0, 0, 1, 1]
    assert [node.score for node in first] == sorted((node.score for node in first), reverse=True)
    taken = [node.index for node in first if node.group == 0]
    for node in first:
        lost = 3.0 * taken.count(node.index) if node.group else 0.0
        assert node.rank_score == pytest.approx(node.score - lost, abs=1e-5)
    for number, kept in enumerate(tree.steps[1:], start=1):
        for node in kept:
            assert node.parent is not None
            assert tree.steps[number - 1][node.parent].group == node.group


def test_the_tree_of_draws_has_a_branch_for_each() -> None:
    search = SearchConfig(sample=True, alternatives=3, max_length=7, length_penalty=0.0)
    explanation = explain_features(choose_steps(make_decoder()), ROWS[0], VOCABULARY, search, key="a.jpg")
    tree = explanation.beam
    assert {len(kept) for kept in tree.steps} == {4}
    for number, kept in enumerate(tree.steps):
        assert [node.place for node in kept] == [0, 1, 2, 3]
        assert [node.parent for node in kept] == ([None] * 4 if number == 0 else [0, 1, 2, 3])
        assert [node.wins for node in kept] == [True, False, False, False]
    assert all(node.ended for node in tree.steps[-1])
    chosen, winner = [step.chosen.log_probability for step in explanation.caption.steps], winner_of(tree)
    if explanation.caption.cut:
        chosen.append(winner.log_probability)
    assert winner.score == winner.total == pytest.approx(math.fsum(chosen), abs=1e-4)
    assert winner.length == len(chosen)


def test_a_trace_is_of_one_image() -> None:
    features, traces = ROWS[:2], [list[TracedStep]()]
    for search in (SEARCH, SearchConfig(sample=True)):
        with pytest.raises(ValueError, match="2 images cannot be traced"):
            CaptionFinder(choose_steps(make_decoder()), VOCABULARY, search).find_candidates(
                features, ["a", "b"], traces=traces
            )
    assert traces == [[]]


def test_every_reason_why_a_word_may_not_come_is_shown() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.to_logits.bias[9] += 60
        decoder.to_logits.bias[END] += 40
    search = SearchConfig(min_length=3, no_repeat_ngram=2, repeat_words=True, max_length=7)
    walk = explain(decoder, search=search).greedy
    assert [step.chosen.index == 9 for step in walk.steps[:2]] == [True, True]
    assert walk.steps[2].chosen.index != 9
    barred = [{word.index: word.barred for word in step.top}.get(9) for step in walk.steps[:4]]
    assert barred[:3] == ["", "", "repeats 2 words"]
    ends = [{word.index: word.barred for word in step.top}[END] for step in walk.steps[:4]]
    assert ends[:4] == ["not before 3 words"] * 3 + [""]
    walk = explain(decoder, search=replace(search, repeat_words=False)).greedy
    assert [{word.index: word.barred for word in step.top}.get(9) for step in walk.steps[:2]] == ["", "just said"]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.5])
@pytest.mark.parametrize("beam_size", [1, 2, 3, 4, 5])
@torch.inference_mode()
def test_the_trees_winner_is_the_searchs(beam_size: int, length_penalty: float) -> None:
    decoder = make_decoder()
    search = SearchConfig(beam_size=beam_size, length_penalty=length_penalty, max_length=7)
    for row in range(len(ROWS)):
        tree = explain(decoder, row, search=search).beam
        found = search_captions(decoder, features_of(row), search)[0]
        assert (tree.words, tree.cut) == (found.words, found.cut)
        assert tree.captions[0] == VOCABULARY.decode(found.words)
        fed = torch.tensor([[START, *found.words]])
        next_words = torch.tensor([*found.words, END])
        last = float(decoder(features_of(row), fed)[0, -1].log_softmax(-1)[END])
        assert winner_of(tree).total == pytest.approx(sum(found.log_probabilities) + last, abs=1e-4)
        assert winner_of(tree).score == pytest.approx(
            winner_of(tree).total / len(next_words) ** length_penalty, abs=1e-6
        )


@torch.inference_mode()
def test_each_node_of_the_tree_goes_on_from_its_parent() -> None:
    decoder = make_decoder()
    carried = 0
    for row in range(len(ROWS)):
        tree = explain(decoder, row, search=SearchConfig(beam_size=4, length_penalty=0.7, max_length=7)).beam
        for number, kept in enumerate(tree.steps, start=1):
            assert [node.place for node in kept] == list(range(len(kept)))
            assert [node.score for node in kept] == sorted((node.score for node in kept), reverse=True)
            assert [node.step for node in kept] == [number] * len(kept)
            assert sum(node.wins for node in kept) == 1
            for node in kept:
                assert node.score == pytest.approx(node.total / node.length**0.7)
                if node.parent is None:
                    assert (number, node.total, node.length) == (1, node.log_probability, 1)
                    continue
                parent = tree.steps[number - 2][node.parent]
                assert parent.ended == node.carried
                assert node.total == pytest.approx(parent.total + node.log_probability)
                assert node.length == parent.length + (not node.carried)
                assert not node.wins or parent.wins
                carried += node.carried
        for number, node in enumerate(tree.steps[0]):
            logits = decoder.step(torch.tensor([START]), decoder.start(features_of(row)))[0][0].log_softmax(-1)
            logits[[PAD, START, END, UNK]] = -math.inf
            assert node.log_probability == pytest.approx(float(logits.topk(4).values[number]), abs=1e-5)
    assert carried > 3


@torch.inference_mode()
def test_cross_entropy_is_torchs() -> None:
    decoder = make_decoder()
    explanation = explain(decoder, 2, "Word5 word6, zebra word7.", "...", "word9")
    assert [reference.text for reference in explanation.references] == ["Word5 word6, zebra word7.", "word9"]
    reference = explanation.references[0]
    assert reference.words == ("word5", "word6", "zebra", "word7")
    targets = torch.tensor([5, 6, UNK, 7, END])
    assert [step.chosen.index for step in reference.walk.steps] == targets.tolist()
    assert [step.fed for step in reference.walk.steps] == [START, 5, 6, UNK, 7]
    logits = decoder(features_of(2), torch.tensor([[START, 5, 6, UNK, 7]]))[0]
    each = F.cross_entropy(logits, targets, reduction="none").tolist()
    assert [-step.chosen.log_probability for step in reference.walk.steps] == pytest.approx(each, abs=1e-4)
    assert reference.walk.cross_entropy == pytest.approx(float(F.cross_entropy(logits, targets)), abs=1e-4)
    ranks = [1 + int((logits[step] > logits[step, target]).sum()) for step, target in enumerate(targets)]
    assert [step.chosen.rank for step in reference.walk.steps] == ranks


@torch.inference_mode()
def test_the_first_state_is_what_the_decoder_starts_with() -> None:
    decoder = make_decoder(image_input="first", layers=2)
    start = explain(decoder, 1).starts[0]
    hidden, cell = decoder.start(features_of(1))
    assert [(part.name, part.layer) for part in start.parts] == [
        ("hidden", 1),
        ("hidden", 2),
        ("cell", 1),
        ("cell", 2),
    ]
    for part, expected in zip(start.parts, [*hidden[:, 0], *cell[:, 0]], strict=True):
        assert part.values == pytest.approx(expected.numpy(), abs=1e-6)
    scaled = (ROWS[1] - decoder.feature_mean.numpy()) / decoder.feature_std.numpy()
    scaled /= np.sqrt(np.mean(scaled**2))
    assert start.scaled == pytest.approx(scaled, abs=1e-5)
    assert [part.name for part in explain(make_decoder(image_input="every")).starts[0].parts] == [
        "hidden",
        "cell",
        "image",
    ]


def test_words_that_may_not_come_next_are_shown_and_marked() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.to_logits.bias[:4] = 60
        decoder.to_logits.bias[9] = 50
    walk = explain(decoder, search=SearchConfig(repeat_words=True)).greedy
    barred = {word.word: word.barred for word in walk.steps[0].top if word.barred}
    assert barred == {
        "<pad>": "never chosen",
        "<start>": "never chosen",
        "<unk>": "never chosen",
        "<end>": "not first",
    }
    assert walk.steps[0].chosen.index == 9
    assert walk.steps[0].chosen.rank == 5
    assert {word.word for word in walk.steps[1].top if word.barred} == {"<pad>", "<start>", "<unk>"}
    assert walk.steps[1].chosen.index == END


def test_a_caption_that_never_ends_is_cut() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.to_logits.bias[END] = -100
    explanation = explain(decoder, search=SearchConfig(beam_size=2, max_length=4))
    assert explanation.beam.cut
    assert explanation.caption.cut
    assert explanation.greedy.cut
    assert len(explanation.caption.steps) == len(explanation.greedy.steps) == 4
    assert [node.word for node in explanation.beam.steps[-1]] == ["<end>", "<end>"]


@torch.inference_mode()
def test_an_ensembles_numbers_are_the_mean_probabilities_of_its_decoders() -> None:
    decoders = [make_decoder(1), make_decoder(2, image_input="every")]
    explanation = explain_features(choose_steps(*decoders), ROWS[4], VOCABULARY, SEARCH, ["word5 word6"])
    assert [len(start.parts) for start in explanation.starts] == [2, 3]
    for start, decoder in zip(explanation.starts, decoders, strict=True):
        assert start.parts[0].values == pytest.approx(decoder.start(features_of(4))[0][0, 0].numpy(), abs=1e-6)
    fed = torch.tensor([[START, *explanation.greedy.words]])
    mean = (decoders[0](features_of(4), fed).softmax(-1) + decoders[1](features_of(4), fed).softmax(-1))[0] / 2
    for step, probabilities in zip(explanation.greedy.steps, mean, strict=False):
        best = probabilities.topk(10)
        assert [word.index for word in step.top] == best.indices.tolist()
        assert [word.probability for word in step.top] == pytest.approx(best.values.tolist(), rel=1e-3)
        assert [math.exp(word.logit) for word in step.top] == pytest.approx(best.values.tolist(), rel=1e-3)
