"""Caption the rows of a store of a million: seconds, peak memory, and what a second run takes.

python benchmarks/caption_scale.py [--rows 20000 1000000] [--store FEATURES] [--formats csv] [--work DIR]

The decoder is a small one with random weights, so that the table and not the network is measured. Rows are random, or
the first ones of FEATURES. Each run is the command line in its own process.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import numpy as np
import torch
from photos import run_command

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary
from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.models.bundle import Model, write_model
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder

WORDS = 2500
SPEC = FeatureSpec("resnet50", "none", "0" * 64, "crop", 224, 256)
_BLOCK_ROWS = 10_000


def make_model(folder: Path, spec: FeatureSpec) -> Path:
    """A decoder of 32 numbers with random weights, for features of `spec`."""
    torch.manual_seed(0)
    vocabulary = Vocabulary([*SPECIAL_WORDS, *(f"word{number}" for number in range(WORDS))])
    config = DecoderConfig(spec.feature_dim, len(vocabulary), 32, 32, 0.0, 0.0)
    tensors = {name: tensor.numpy() for name, tensor in Decoder(config).state_dict().items()}
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    write_model(folder, Model(vars(config), vocabulary, spec, {}, splits, {}, {}, tensors))
    return folder


def make_store(path: Path, rows: int, source: FeatureStore | None) -> Path:
    """A store of `rows` rows, random or those of `source`."""
    generator = np.random.default_rng(0)
    with FeatureWriter(path, source.spec if source else SPEC, dtype="float16", made_by={}) as writer:
        for start in range(0, rows, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, rows)
            keys = [f"folder/{number:09d}.jpg" for number in range(start, stop)]
            if source is not None:
                writer.add(keys, source.read(np.arange(start, stop)))
            else:
                writer.add(keys, generator.random((stop - start, SPEC.feature_dim), dtype=np.float32))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 1_000_000])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--formats", nargs="+", default=["csv"])
    parser.add_argument("--work", type=Path, help="where the store and the tables go")
    arguments = parser.parse_args()
    source = FeatureStore.open(arguments.store) if arguments.store else None
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        model = make_model(work / "model", source.spec if source else SPEC)
        print("| rows | table | MB | seconds | rows/s | peak memory, GB | second run, s | its peak memory, GB |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for rows in arguments.rows:
            is_whole = arguments.store is not None and source is not None and len(source) == rows
            store = arguments.store if is_whole else make_store(work / f"{rows}.h5", rows, source)
            for table_format in arguments.formats:
                output = work / f"{rows}.{table_format}"
                words = ["caption", store, "--model", model, "--output", output, "--beam-size", 1, "--max-length", 10]
                first, second = (run_command(*words, "--quiet") for _ in range(2))
                print(
                    f"| {rows:,} | {table_format} | {output.stat().st_size / 1e6:.0f} | {first.seconds:.0f} "
                    f"| {rows / first.seconds:,.0f} | {first.peak_rss_gb:.2f} | {second.seconds:.1f} "
                    f"| {second.peak_rss_gb:.2f} |",
                    flush=True,
                )
                if "rows as before" not in second.output:
                    raise SystemExit(second.output)


if __name__ == "__main__":
    main()
