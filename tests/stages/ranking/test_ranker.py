"""The matcher, and a ranker that is taken apart and put together again."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from builders import make_ranker
from torch.nn.utils.rnn import pad_sequence

from captionmill.data.captions.vocabulary import PAD
from captionmill.data.errors import ModelError
from captionmill.data.models.bundle import RankerParts
from captionmill.stages.ranking.matcher import MatcherConfig
from captionmill.stages.ranking.packed import pack_ranker, unpack_ranker
from captionmill.stages.ranking.ranker import RankerConfig
from captionmill.stages.training.reranking.network import MatcherNetwork

CANDIDATES = [[4, 5, 6], [7], [5, 5, 8, 9, 10, 11]]
FEATURES = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)


def test_the_matcher_gives_the_vectors_of_the_network_that_it_was_trained_as() -> None:
    torch.manual_seed(0)
    network = MatcherNetwork(MatcherConfig(feature_dim=8, vocab_size=12, embed_dim=6, joint_dim=5)).eval()
    network.feature_std[3] = 0  # a feature that never changes
    with torch.inference_mode():
        captions = [torch.tensor(caption) for caption in CANDIDATES]
        alone = torch.cat([network(caption[None]) for caption in captions])
        padded = network(pad_sequence(captions, batch_first=True, padding_value=PAD))
        images = network.embed_images(torch.from_numpy(FEATURES))
    matcher = network.trained()
    np.testing.assert_allclose(matcher.embed_captions(CANDIDATES), alone, atol=1e-6)
    np.testing.assert_allclose(padded, alone, atol=1e-6)
    np.testing.assert_allclose(matcher.embed_images(FEATURES), images, atol=1e-6)
    np.testing.assert_allclose(alone.norm(dim=1), np.ones(3), atol=1e-6)
    assert matcher.embed_captions([[], [4], []])[[0, 2]].tolist() == [[0.0] * 5] * 2


def test_a_ranker_is_the_same_after_it_was_packed() -> None:
    ranker = make_ranker(FEATURES, 12)
    parts = pack_ranker(ranker)
    again = unpack_ranker(parts, "model", 12)
    rows, likelihoods = FEATURES[:2], [[-1.0, -2.0, -3.0]] * 2
    mine, others = (
        one.score(rows, one.weigh(rows)[0], [CANDIDATES] * 2, likelihoods, "both") for one in (ranker, again)
    )
    for mine_row, others_row in zip(mine, others, strict=True):
        for one, other in zip(mine_row, others_row, strict=True):
            assert (one.consensus, one.match) == pytest.approx((other.consensus, other.match), abs=1e-2)  # float16
            assert one.total == pytest.approx(
                one.consensus + 0.3 * one.log_probability + 0.75 * one.match - 0.01 * one.length
            )
    assert pack_ranker(again).settings == parts.settings


def test_repetitions_and_words_are_taken_off_but_not_by_models_of_earlier_versions() -> None:
    ranker = make_ranker(FEATURES, 12)
    idf = ranker.words.idf.tolist()
    images = [{word for words in one.captions for word in words} for one in ranker.strongest(FEATURES[0], 20)]
    assert idf[10] == pytest.approx(np.log(20 / sum(10 in words for words in images)))
    assert ranker.repetition([4, 10, 5, 4, 10]) == pytest.approx(idf[10])  # the pair 4, 10
    assert ranker.repetition([10, 11, 10, 11, 10, 11]) == pytest.approx(2 * idf[11] + idf[10])
    assert ranker.repetition([10, 11, 4, 10, 5, 11]) == 0
    parts = pack_ranker(ranker)
    earlier = {
        name: value for name, value in parts.settings.items() if name not in ("repetition_weight", "length_weight")
    }
    old = unpack_ranker(replace(parts, settings=earlier), "model", 12)
    candidates, likelihoods = [[[10, 11, 10, 11], [10, 11]]], [[-1.0, -1.0]]
    unused = np.empty((1, 0), np.float32)
    mine, others = (one.score(FEATURES[:1], unused, candidates, likelihoods, "matcher")[0] for one in (ranker, old))
    assert [score.length for score in mine] == [4, 2]
    assert mine[0].total == pytest.approx(others[0].total - 0.1 * idf[11] - 0.01 * 4, abs=5e-3)  # float16
    assert mine[1].total == pytest.approx(others[1].total - 0.01 * 2, abs=5e-3)


def test_an_image_that_is_far_from_all_training_images_trusts_the_consensus_less() -> None:
    ranker = make_ranker(FEATURES, 12, RankerConfig(usual_cosine=0.9))
    cosines = np.array([[1.0, 0.2], [0.3, 0.1], [-0.5, -0.2]], np.float32)
    assert ranker.trust(cosines) == pytest.approx(np.array([[1], [1 / 3], [0]]))
    weights, _ = ranker.weigh(np.stack([FEATURES[0], -4 * FEATURES[0]]))
    near, far = ranker.consensus(weights, [CANDIDATES] * 2)
    assert np.abs(near).max() > 0.1
    (trusting,) = ranker.consensus(make_ranker(FEATURES, 12).weigh(-4 * FEATURES[:1])[0], [CANDIDATES])
    assert np.abs(far).max() < np.abs(trusting).max()


def test_the_images_that_decide_come_with_their_captions() -> None:
    ranker = make_ranker(FEATURES, 12)
    strongest = ranker.strongest(FEATURES[3], 2)
    assert (strongest[0].image, len(strongest)) == (3, 2)
    assert strongest[0].cosine == pytest.approx(1, abs=1e-3)
    assert strongest[0].captions == ((10, 5, 8), (11, 5, 10))


def test_the_guide_prefers_rare_words_that_the_training_images_predict() -> None:
    ranker = make_ranker(FEATURES, 12)
    guide = ranker.guide(ranker.weigh(FEATURES[:4])[0])
    assert guide.shape == (4, 12)
    assert np.abs(guide[:, :6]).max() < guide[:, 6:].max()  # word 5 is in all captions, and rare words count more
    assert guide[:, :4].tolist() == [[0] * 4] * 4
    weights, _ = ranker.regression.weights(FEATURES[:4])
    shares = np.zeros(20)
    for neighbour in ranker.strongest(FEATURES[0], 20):
        shares[neighbour.image] = np.mean([10 in words for words in neighbour.captions])
    expected = weights @ shares * np.log(20 / (shares > 0).sum())
    assert guide[:, 10].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", np.zeros((19, 8), np.int8)),
        ("words", np.full(120, 12, np.uint16)),
        ("lengths", np.full(40, 4, np.int32)),
        ("captions_per_image", np.full(20, 1, np.int32)),
        ("mean", np.full(8, np.nan, np.float32)),
        ("entry_images", None),
        ("matcher.to_joint.bias", np.zeros(5, np.float16)),
    ],
)
def test_a_ranker_whose_parts_do_not_fit_is_refused(name: str, value: npt.NDArray[Any] | None) -> None:
    parts = pack_ranker(make_ranker(FEATURES, 12))
    tensors = {key: tensor for key, tensor in parts.tensors.items() if key != name}
    if value is not None:
        tensors[name] = value
    with pytest.raises(ModelError, match=r"^model: what re-ranks its captions is not sound"):
        unpack_ranker(RankerParts(parts.settings, tensors), "model", 12)
    with pytest.raises(ModelError, match="not sound"):
        unpack_ranker(replace(parts, settings={}), "model", 12)
