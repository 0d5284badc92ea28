"""Does the confidence mean anything? The test images by their caption's confidence, in quarters, and their scores.

python benchmarks/confidence.py FEATURES FLICKR8K MODEL [MODEL ...] [--plot confidence.png]

BLEU-4 is the corpus score of a quarter, CIDEr-D the mean over it, with the rarity weights of all test images.
Intervals of 95 % are of 1,000 resamples of a quarter's images. The plot shows CIDEr-D.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from captionmill.stages.scoring.bootstrap import Estimate, estimate
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.scoring.metrics import Metric, measure_captions

QUARTERS = ("lowest", "second", "third", "highest")


Table = dict[str, tuple[pd.Series, list[dict[str, Estimate]]]]


def score_quarters(metrics: list[Metric], confidences: pd.Series) -> list[dict[str, Estimate]]:
    """The scores of each quarter of the images, the least sure first."""
    order = np.argsort(confidences.to_numpy(), kind="stable")
    return [
        estimate([Metric(metric.name, metric.rows[images], metric.combine) for metric in metrics])
        for images in np.array_split(order, len(QUARTERS))
    ]


def draw(path: Path, found: Table) -> None:
    """A line for each model: CIDEr-D of the quarters with their intervals."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for shift, (name, (_, quarters)) in enumerate(found.items()):
        values = np.array([[quarter["cider_d"].value, *_interval(quarter["cider_d"])] for quarter in quarters])
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        places = np.arange(len(QUARTERS)) + 0.06 * (shift - (len(found) - 1) / 2)
        axes.errorbar(places, values[:, 0], errors, marker="o", capsize=4, label=name)
    axes.set_xticks(range(len(QUARTERS)), QUARTERS)
    axes.set_xlabel("quarter of the test images by the confidence of their caption")
    axes.set_ylabel("CIDEr-D, 95 % interval")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def _interval(found: Estimate) -> tuple[float, float]:
    return found.low, found.high


def _show(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--names", nargs="+", help="what to call them, in the same order")
    parser.add_argument("--plot", type=Path, default=Path("confidence.png"))
    arguments = parser.parse_args()
    found: Table = {}
    print("| model | quarter by confidence | confidence | BLEU-4 | CIDEr-D |\n|---|---|---|---|---|")
    for name, model in zip(arguments.names or map(str, arguments.models), arguments.models, strict=True):
        evaluation = evaluate(
            arguments.features,
            model,
            arguments.flickr8k / "Flickr8k.token.txt",
            image_list=arguments.flickr8k / "Flickr_8k.testImages.txt",
        )
        texts = {key: caption.text for key, caption in evaluation.captions.items()}
        metrics = measure_captions(texts, evaluation.references)
        confidences = pd.Series([caption.confidence for caption in evaluation.captions.values()])
        found[name] = confidences, score_quarters(metrics, confidences)
        ordered = np.array_split(np.sort(confidences.to_numpy()), len(QUARTERS))
        for quarter, values, scores in zip(QUARTERS, ordered, found[name][1], strict=True):
            print(
                f"| {name} | {quarter} | {values[0]:.2f} to {values[-1]:.2f} | {_show(scores['bleu_4'])} "
                f"| {_show(scores['cider_d'])} |"
            )
        cider = pd.Series(next(metric for metric in metrics if metric.name == "cider_d").each)
        print(f"{name}: rank correlation of confidence and CIDEr-D {confidences.rank().corr(cider.rank()):.2f}")
    draw(arguments.plot, found)


if __name__ == "__main__":
    main()
