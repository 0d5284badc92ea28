"""What re-ranking does for captions: one decoder per seed, captioned in several ways.

python benchmarks/rerank.py FLICKR8K --features FEATURES [VIEWS] --work DIR [--seeds 3] [--splits dev test]

FEATURES is the store that benchmarks/flickr8k.py makes, VIEWS one of several views per image, FLICKR8K as there. Models
are trained with the default settings and kept in DIR, so that a second run only captions. Choices are made on the dev
images; the test images are for the finished table. The first row is the baseline. benchmarks/caption.py measures what
re-ranking costs.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from photos import run_command

from captionmill.data.captions.references import read_annotations, read_split_list
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle
from captionmill.stages.decoding.captioner import Captioner
from captionmill.stages.scoring.metrics import measure_captions
from captionmill.stages.settings import SearchConfig

WAYS = {
    "beam 5, no re-ranking": SearchConfig(rerank="none"),
    "matcher": SearchConfig(rerank="matcher"),
    "consensus": SearchConfig(rerank="consensus"),
    "both, 10 candidates": SearchConfig(rerank="both", candidates=10),
    "both, 20 candidates (default)": SearchConfig(rerank="both"),
    "both, 50 candidates": SearchConfig(rerank="both", candidates=50),
}
ENSEMBLED = ("beam 5, no re-ranking", "both, 20 candidates (default)", "both, 50 candidates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--features", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", choices=["dev", "test"], nargs="+", default=["dev"])
    parser.add_argument("--rows", type=int, default=1000, help="images to caption")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = {
        path: [train(path, seed, arguments.flickr8k, arguments.work) for seed in range(arguments.seeds)]
        for path in arguments.features
    }
    for path, own in models.items():
        for split in arguments.splits:
            print_table(FeatureStore.open(path), own, arguments.flickr8k, split, arguments.rows)


def train(features: Path, seed: int, flickr8k: Path, work: Path) -> Path:
    """The model of a seed, with the default settings."""
    model = work / f"{features.stem}-{seed}"
    if not (model / "bundle.json").exists():
        lists = ("--train-list", flickr8k / "Flickr_8k.trainImages.txt", "--val-list")
        run_command(
            *("train", features, "--captions", flickr8k / "Flickr8k.token.txt", "--output", model, "--seed", seed),
            *(*lists, flickr8k / "Flickr_8k.devImages.txt", "--quiet"),
        )
    return model


def print_table(store: FeatureStore, models: list[Path], flickr8k: Path, split: str, rows: int) -> None:
    """The scores of each way, for the images of a split: each model by itself, then all as one."""
    references = read_annotations(flickr8k / "Flickr8k.token.txt", known_keys=store.keys).captions
    chosen = read_split_list(flickr8k / f"Flickr_8k.{split}Images.txt", known_keys=store.keys)
    keys = [key for key in sorted(chosen) if key in store and key in references][:rows]
    train_captions = {
        " ".join(text.lower().rstrip(" .").split())
        for key in read_bundle(models[0]).splits["train"]
        for text in references[key]
    }
    ranker_mb = sum(path.stat().st_size for path in models[0].glob("ranker-*")) / 1e6
    print(f"\n{store.path.name}, {len(keys):,} {split} images; the ranker takes {ranker_mb:.1f} MB")
    print("| | CIDEr-D | each seed | BLEU-4 | distinct | words used | copied | top quarter, bottom quarter |")
    print("|---|---|---|---|---|---|---|---|")
    groups = [(name, [[model] for model in models]) for name in WAYS]
    groups += [(f"ensemble: {name}", [models]) for name in ENSEMBLED if len(models) > 1]
    for name, folders in groups:
        found = [
            Result.of(folder, store, keys, references, WAYS[name.removeprefix("ensemble: ")]) for folder in folders
        ]
        ciders = [result.cider for result in found]
        texts = [text for result in found for text in result.texts]
        copied = sum(text in train_captions for text in texts) / len(texts)
        quarters = [statistics.mean(result.quarters[side] for result in found) for side in (0, 1)]
        print(
            f"| {name} | **{statistics.mean(ciders):.3f}** | {', '.join(f'{cider:.3f}' for cider in ciders)} "
            f"| {statistics.mean(result.bleu for result in found):.3f} "
            f"| {statistics.mean(len(set(result.texts)) for result in found):.0f} "
            f"| {statistics.mean(len(set(' '.join(result.texts).split())) for result in found):.0f} "
            f"| {copied:.1%} | {quarters[0]:.2f}, {quarters[1]:.2f} |",
            flush=True,
        )


class Result:
    """The captions of one model in one way, scored."""

    def __init__(self, texts: list[str], cider: float, bleu: float, quarters: tuple[float, float]) -> None:
        self.texts, self.cider, self.bleu, self.quarters = texts, cider, bleu, quarters

    @classmethod
    def of(
        cls,
        models: list[Path],
        store: FeatureStore,
        keys: list[str],
        references: Mapping[str, Sequence[str]],
        search: SearchConfig,
    ) -> "Result":
        captioner = Captioner.load(models, device="cpu")
        captions = dict(captioner.captions(store, keys, search))
        texts = {key: caption.text for key, caption in captions.items()}
        metrics = {metric.name: metric for metric in measure_captions(texts, references)}
        order = np.argsort([-caption.confidence for caption in captions.values()], kind="stable")
        each, quarter = metrics["cider_d"].each[order], len(keys) // 4
        quarters = (float(each[:quarter].mean()), float(each[-quarter:].mean()))
        return cls(list(texts.values()), metrics["cider_d"].value, metrics["bleu_4"].value, quarters)


if __name__ == "__main__":
    main()
