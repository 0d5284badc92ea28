import random

import numpy as np
import pytest
from builders import plain_bleu

from captionmill.data.errors import InputError
from captionmill.stages.scoring.bootstrap import Estimate, compare, estimate
from captionmill.stages.scoring.metrics import Metric, mean_metric, measure_captions
from captionmill.stages.scoring.settings import BootstrapConfig

WORDS = ["a", "dog", "runs", "on", "the", "grass", "with", "red", "ball", "and", "two", "men", "ride", "in", "snow"]


def make_corpus(count: int, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions that are references with some words changed, and four references an image."""
    generator = random.Random(seed)
    captions, references = {}, {}
    for key in map(str, range(count)):
        references[key] = [" ".join(generator.choices(WORDS, k=generator.randint(5, 14))) for _ in range(4)]
        words = generator.choice(references[key]).split()
        for _ in range(generator.randint(0, 4)):
            words[generator.randrange(len(words))] = generator.choice(WORDS)
        captions[key] = " ".join(words)
    return captions, references


def test_interval_contains_the_score_and_narrows_with_the_root_of_the_image_count() -> None:
    few, many = (estimate(measure_captions(*make_corpus(count))) for count in (50, 800))
    assert list(few) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    for name, found in (few | many).items():
        assert found.low < found.value < found.high, name
    for name in few:
        ratio = (few[name].high - few[name].low) / (many[name].high - many[name].low)
        assert ratio == pytest.approx(4, rel=0.4), name


def test_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = estimate([mean_metric("rouge_l", values)], BootstrapConfig(resamples=4000))["rouge_l"]
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_a_95_percent_interval_holds_the_truth_in_about_95_of_100_samples() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        metric = mean_metric("rouge_l", generator.uniform(0.0, 1.0, 200))
        found = estimate([metric], BootstrapConfig(resamples=200))["rouge_l"]
        hits += found.low <= 0.5 <= found.high
    assert 0.91 <= hits / 400 <= 0.98


def test_a_resample_of_bleu_is_the_corpus_bleu_of_the_images_it_drew() -> None:
    captions, references = make_corpus(30)
    bleu_4 = measure_captions(captions, references)[3]
    drawn = np.random.default_rng(3).integers(30, size=30)
    keys = [list(captions)[position] for position in drawn]
    expected = plain_bleu(
        [captions[key].split() for key in keys], [[text.split() for text in references[key]] for key in keys]
    )[3]
    assert bleu_4.combine(bleu_4.rows[drawn].sum(axis=0), 30) == pytest.approx(expected, abs=1e-12)
    assert estimate([bleu_4], BootstrapConfig(resamples=1, seed=3))["bleu_4"].low == pytest.approx(expected, abs=1e-12)


def test_the_seed_decides_the_interval_and_other_metrics_do_not() -> None:
    metrics = measure_captions(*make_corpus(40))
    assert estimate(metrics) == estimate(metrics)
    assert estimate(metrics[5:])["cider_d"].low == pytest.approx(estimate(metrics)["cider_d"].low, abs=1e-12)
    other = estimate(metrics, BootstrapConfig(seed=1))
    assert other["cider_d"].value == estimate(metrics)["cider_d"].value
    assert other["cider_d"].low != estimate(metrics)["cider_d"].low


def test_one_image_has_an_interval_of_no_width() -> None:
    intervals = estimate(measure_captions({"1": "a dog runs on"}, {"1": ["a dog runs on grass"]}))
    assert {"bleu_4", "cider_d"} <= intervals.keys()
    for found in intervals.values():
        assert (found.low, found.high) == pytest.approx((found.value, found.value), abs=1e-15)


def test_a_model_differs_from_itself_by_exactly_nothing() -> None:
    metrics = measure_captions(*make_corpus(60))
    again = measure_captions(*make_corpus(60))
    assert compare(metrics, again) == {metric.name: Estimate(0.0, 0.0, 0.0) for metric in metrics}


def test_a_constant_gain_on_every_image_has_an_interval_of_no_width_when_paired() -> None:
    values = np.random.default_rng(4).normal(size=100)
    found = compare([mean_metric("rouge_l", values + 0.25)], [mean_metric("rouge_l", values)])["rouge_l"]
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)
    alone = estimate([mean_metric("rouge_l", values)])["rouge_l"]
    assert alone.high - alone.low > 0.25


def test_differences_change_sign_with_the_order_of_the_models_and_skip_what_one_lacks() -> None:
    captions, references = make_corpus(60)
    metrics = measure_captions(captions, references)
    worse = measure_captions({key: text.rsplit(" ", 2)[0] for key, text in captions.items()}, references)
    forwards, backwards = compare(metrics, worse[3:]), compare(worse, metrics[3:])
    assert list(forwards) == ["bleu_4", "rouge_l", "cider_d"]
    for name, found in forwards.items():
        assert found.low > 0
        assert (found.value, found.low, found.high) == pytest.approx(
            (-backwards[name].value, -backwards[name].high, -backwards[name].low), abs=1e-12
        )


def test_models_on_other_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"metrics of \[3, 4\] images"):
        compare([mean_metric("rouge_l", np.ones(3))], [mean_metric("rouge_l", np.ones(4))])


def test_a_thousand_resamples_of_a_thousand_images_sum_what_a_plain_loop_sums() -> None:
    rows = np.random.default_rng(5).integers(0, 20, (1000, 3)).astype(np.float64)
    metric = Metric("bleu_1", rows, lambda sums, _: sums[..., 0] / sums[..., 1])
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(1000):
        drawn = rows[generator.integers(1000, size=1000)]
        ratios.append(drawn[:, 0].sum() / drawn[:, 1].sum())
    found = estimate([metric])["bleu_1"]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1e-12)
