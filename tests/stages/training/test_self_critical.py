"""Sampled captions are captions, are rewarded by their CIDEr-D, and become better by it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TINY_TRAINING, make_task

from captionmill.data.captions.references import read_annotations
from captionmill.data.captions.vocabulary import END, PAD, START, UNK, Vocabulary
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.tokens import tokenize_ptb
from captionmill.stages.training.recorder import TrainListener
from captionmill.stages.training.self_critical import Reward, sample_captions
from captionmill.stages.training.state import LoopConfig
from captionmill.stages.training.train import train

CAPTIONS = {
    "a": ["A dog runs on the beach.", "the dog's ball is red", "a dog"],
    "b": ["Two men cannot climb a rock!", "two men and a rock"],
    "c": ["a girl in a red dress", "..."],
}
VOCABULARY = Vocabulary.build((text for texts in CAPTIONS.values() for text in texts), min_count=1)


def encode(*captions: str, ended: bool = True) -> torch.Tensor:
    rows = [[START, *VOCABULARY.encode(caption), *([END] if ended else [])] for caption in captions]
    longest = max(map(len, rows)) + 2
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def plain_rewards(keys: str, sentences: list[list[str]]) -> list[float]:
    references = {key: [[*tokenize_ptb(text), "<end>"] for text in texts] for key, texts in CAPTIONS.items()}
    return [CiderD(references).score(key, tokens) for key, tokens in zip(keys, sentences, strict=True)]


def test_the_reward_is_the_cider_of_the_sentences_with_their_end() -> None:
    sampled = ["a dog runs", "the dog's ball is red", "two men cannot climb a rock", "two men", "a red", "red dress"]
    expected = plain_rewards("aabbcc", [[*tokenize_ptb(text), "<end>"] for text in sampled])
    reward = Reward(CAPTIONS, list("abc"), VOCABULARY)
    advantages, mean = reward.advantages(list("abc"), encode(*sampled))
    assert mean == pytest.approx(np.mean(expected))
    assert mean > 1
    pairs = np.array(expected).reshape(3, 2)
    np.testing.assert_allclose(advantages.reshape(3, 2), pairs - pairs[:, ::-1], rtol=1e-6)
    assert advantages.dtype == np.float32
    assert advantages.shape == (6,)


def test_a_caption_that_breaks_off_earns_less_than_a_whole_one() -> None:
    reward = Reward(CAPTIONS, list("abc"), VOCABULARY)
    whole = reward.advantages(["a"], encode("a dog", "a dog"))[1]
    cut = reward.advantages(["a"], encode("a dog", "a dog", ended=False))[1]
    assert cut == pytest.approx(plain_rewards("a", [["a", "dog"]])[0])
    assert cut < whole


@pytest.mark.parametrize("samples", [2, 5])
def test_advantages_sum_to_zero_over_an_images_samples(samples: int) -> None:
    torch.manual_seed(0)
    sampled = torch.randint(4, len(VOCABULARY), (3 * samples, 7))
    sampled[:, 0], sampled[:, -1] = START, END
    advantages, _ = Reward(CAPTIONS, list("abc"), VOCABULARY).advantages(list("abc"), sampled)
    assert np.abs(advantages).max() > 0.01
    np.testing.assert_allclose(advantages.reshape(3, samples).sum(1), 0, atol=1e-5)


@pytest.mark.parametrize("max_length", [1, 2, 5, 9])
def test_sampled_captions_obey_the_rules(max_length: int) -> None:
    torch.manual_seed(max_length)
    decoder = Decoder(DecoderConfig(8, 6, 6, 10, dropout=0.5, feature_dropout=0.5)).eval()
    with torch.no_grad():
        decoder.to_logits.bias[:] = torch.tensor([3.0, 3.0, 1.0, 0.0, 0.0, 1.0])  # what is forbidden is likeliest
    sampled = sample_captions(decoder, torch.randn(40, 8), samples=3, max_length=max_length)
    assert len(sampled) == 120
    assert sampled.shape[1] <= 1 + max_length
    ends = 0
    for row in sampled.tolist():
        assert row[0] == START
        words = row[1:]
        length = words.index(END) if END in words else len(words)
        ends += END in words
        assert all(word >= UNK for word in words[:length])
        assert all(word == PAD for word in words[length + 1 :])
    assert ends > 0
    assert not sampled.requires_grad


def test_samples_of_an_image_stand_together_and_follow_its_probabilities() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(8, 6, 6, 10, dropout=0, feature_dropout=0)).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    features = torch.randn(2, 8)
    sampled = sample_captions(decoder, features, samples=4000, max_length=1)
    logits = decoder(features, torch.full((2, 1), START)).detach()[:, 0]
    logits[:, [PAD, START]] = -torch.inf
    expected = logits.softmax(1)[:, 4]
    drawn = (sampled[:, 1] == 4).float().reshape(2, 4000).mean(1)
    assert abs(float(expected[0] - expected[1])) > 0.05
    torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)


def test_the_reward_rises_and_the_best_epoch_of_both_phases_is_kept(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(
        TINY_TRAINING,
        hidden_dim=32,
        dropout=0.0,
        feature_dropout=0.0,
        label_smoothing=0.0,
        max_epochs=12,
        self_critical_epochs=20,
        self_critical_learning_rate=0.02,
        self_critical_samples=20,
    )
    listener = TrainListener(loop=LoopConfig(images_per_step=4))
    summary = train(features, captions, tmp_path / "model", config, listener=listener)
    rewards = [result.loss for result in summary.history if result.phase == "self-critical"]
    assert len(rewards) == 20
    assert rewards[0] < 5  # of 10: there is something to learn
    assert np.mean(rewards[-3:]) > 1.4 * np.mean(rewards[:3])
    best = max(result.val_cider for result in summary.history)
    assert summary.best.val_cider == best
    bundle = read_bundle(tmp_path / "model")
    assert bundle.scores["epoch"] == summary.best.epoch
    store, references = FeatureStore.open(features), read_annotations(captions).captions
    search = config.search
    decoded = dict(Captioner.load(tmp_path / "model", device="cpu").captions(store, bundle.splits["val"], search))
    scorer = CiderD({key: [tokenize_ptb(text) for text in references[key]] for key in bundle.splits["val"]})
    scores = scorer.scores({key: tokenize_ptb(caption.text) for key, caption in decoded.items()})
    assert scores.mean() == pytest.approx(best)


def test_a_second_phase_that_makes_it_worse_leaves_the_first_ones_best(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(
        TINY_TRAINING, hidden_dim=32, max_epochs=12, self_critical_epochs=2, self_critical_learning_rate=50.0
    )
    summary = train(features, captions, tmp_path / "model", config)
    assert summary.best.phase == "cross entropy"
    assert summary.best.val_cider > summary.history[-1].val_cider
    assert read_bundle(tmp_path / "model").scores["epoch"] == summary.best.epoch


def test_the_second_phase_begins_where_the_first_was_best(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    for seed in range(10):
        config = dataclasses.replace(
            TINY_TRAINING,
            hidden_dim=32,
            max_epochs=12,
            self_critical_epochs=1,
            self_critical_learning_rate=0.0,
            seed=seed,
        )
        history = train(features, captions, tmp_path / "model", config, overwrite=True).history
        assert history[-1].val_cider == max(result.val_cider for result in history[:-1])
        assert not history[-1].best  # as good is not better
        if history[-2].val_cider < history[-1].val_cider:
            return
    pytest.fail("the last epoch of the first phase was always its best: nothing was shown")


def test_the_reward_of_an_epoch_is_the_mean_over_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means: list[tuple[int, float]] = []
    real = Reward.advantages

    def advantages(reward: Reward, keys: list[str], sampled: torch.Tensor) -> tuple[object, float]:
        result = real(reward, keys, sampled)
        means.append((len(sampled), result[1]))
        return result

    monkeypatch.setattr(Reward, "advantages", advantages)
    features, captions = make_task(tmp_path)
    config = dataclasses.replace(TINY_TRAINING, max_epochs=8, self_critical_epochs=1)
    listener = TrainListener(loop=LoopConfig(images_per_step=7))  # of 8 images: the last step has one
    result = train(features, captions, tmp_path / "model", config, listener=listener).history[-1]
    assert [samples for samples, _ in means] == [35, 5]
    assert result.loss == pytest.approx((35 * means[0][1] + 5 * means[1][1]) / 40, rel=1e-5)
