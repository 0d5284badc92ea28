"""How many captions that were swapped on purpose does `captionmill audit` list among the worst?

python benchmarks/audit.py FEATURES FLICKR8K MODEL --work DIR [--share 0.02] [--seed 0] [--train]

In each split, a share of the captions is exchanged between images, and the audit lists twice that share. A model that
was trained on the right captions has an advantage on its own training images. With --train, its matcher is trained
again on the swapped captions, as it would be by somebody who does not know of the mistakes.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import numpy as np

from captionmill.data.captions.references import read_annotations, read_split_list
from captionmill.data.captions.splits import Splits
from captionmill.data.features.store import FeatureStore
from captionmill.data.models.bundle import read_bundle, write_model
from captionmill.data.progress import no_progress
from captionmill.stages.ranking.audit import audit_captions
from captionmill.stages.ranking.packed import pack_ranker
from captionmill.stages.settings import SearchConfig, TrainConfig
from captionmill.stages.training.reranking.build import fit_ranker
from captionmill.stages.training.state import Training

LISTS = {"train": "train", "val": "dev", "test": "test"}
Captions = list[tuple[str, str]]
"""Captions with the image of each."""


def swap(captions: Captions, share: float, seed: int) -> tuple[Captions, set[tuple[str, str]]]:
    """The captions, a share of them each with another's image, and which these are."""
    chosen = np.random.default_rng(seed).choice(len(captions), round(share * len(captions)), replace=False)
    swapped, wrong = list(captions), set()
    for place, other in zip(chosen, np.roll(chosen, 1), strict=True):
        swapped[place] = captions[place][0], captions[other][1]
        if captions[other][0] != captions[place][0]:
            wrong.add(swapped[place])
    return swapped, wrong


def write_table(path: Path, captions: Captions) -> None:
    """Write a token file."""
    counts: dict[str, int] = {}
    lines = []
    for key, text in captions:
        number = counts[key] = counts.get(key, -1) + 1
        lines.append(f"{key}#{number}\t{text}\n")
    path.write_text("".join(lines), encoding="utf-8")


def train_matcher(
    store: FeatureStore, model_path: Path, captions: Path, keys: dict[str, list[str]], work: Path
) -> Path:
    """The model in `work` with the decoder of `model_path` and a matcher that is trained on the captions of a file."""
    model = read_bundle(model_path)
    texts = read_annotations(captions, known_keys=store.keys, word_rule=model.vocabulary.word_rule).captions
    train, val, test = (keys[name] for name in LISTS)
    splits = Splits(train, val, test)
    training = Training(store, texts, splits, model.vocabulary, TrainConfig(search=SearchConfig()))
    folder = work / "model"
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, replace(model, ranker=pack_ranker(fit_ranker(training, folder, no_progress))))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = FeatureStore.open(arguments.features)
    texts = read_annotations(arguments.flickr8k / "Flickr8k.token.txt", known_keys=store.keys).captions
    keys = {
        name: sorted(read_split_list(arguments.flickr8k / f"Flickr_8k.{file}Images.txt", known_keys=store.keys))
        for name, file in LISTS.items()
    }
    found = {
        name: swap([(key, text) for key in own if key in texts for text in texts[key]], arguments.share, arguments.seed)
        for name, own in keys.items()
    }
    model = arguments.model
    if arguments.train:
        whole = arguments.work / "swapped.token.txt"
        write_table(whole, [pair for captions, _ in found.values() for pair in captions])
        model = train_matcher(store, model, whole, keys, arguments.work)
    print("| split | captions | swapped | listed | swapped among the listed |\n|---|---|---|---|---|")
    for name, (captions, swapped) in found.items():
        path = arguments.work / f"{name}.token.txt"
        write_table(path, captions)
        top = round(2 * arguments.share * len(captions))
        audit = audit_captions(store.path, path, model, top=top, output=arguments.work / f"{name}.csv")
        hits = sum((one.key, one.caption) in swapped for one in audit.worst)
        print(f"| {name} | {len(captions):,} | {len(swapped):,} | {top:,} | {hits:,} ({hits / len(swapped):.0%}) |")


if __name__ == "__main__":
    main()
