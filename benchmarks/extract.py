"""Stage one against the loop that tutorials write, in one run: speed, the engine's own limit, likeness, memory.

python benchmarks/extract.py PHOTOS --weights resnet50.pth [--images 2000] [--rounds 3] [--memory-images 50000]
python benchmarks/extract.py PHOTOS --weights resnet50.pth --engines openvino{," --precision "{fp32,int8}}
python benchmarks/extract.py PHOTOS --weights resnet50.pth --engines torch "torch --jobs 1"    on a GPU
python benchmarks/extract.py PHOTOS --weights resnet50.pth --image-size 64    the network as fast as on a faster machine

PHOTOS is a folder of images, used over and over by symbolic links until there are enough. Prints the table of
docs/benchmarks.md, medians of all rounds: rates from the first image to the last, and of the whole command, from its
start to its end. Nothing else should run on the machine.
"""

import argparse
import operator
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import numpy as np
import torch
from photos import link_photos, run_command
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet50

from captionmill.data.features.store import FeatureStore
from captionmill.data.images.find import find_images
from captionmill.stages.encoding.encoder import build_encoder
from captionmill.stages.encoding.engine import build_engine, encode_batches
from captionmill.stages.encoding.loader import Batch, load_batches
from captionmill.stages.settings import ExtractConfig


class PlainDataset(torch.utils.data.Dataset[torch.Tensor]):
    """Images as a tutorial reads them."""

    def __init__(self, paths: list[Path], image_size: int) -> None:
        self.paths = paths
        self.recipe = transforms.Compose(
            [
                transforms.Resize(round(image_size * 256 / 224)),
                transforms.CenterCrop(image_size),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = self.recipe(Image.open(self.paths[index]).convert("RGB"))
        return tensor


def run_plain(folder: Path, weights: Path, count: int, image_size: int) -> tuple[float, np.ndarray]:
    """Images/s and features [count, 2048] of the plain loop: Pillow, torchvision, a 2-worker DataLoader, fp32.

    It computes on the first GPU where there is one.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = resnet50()
    network.fc = torch.nn.Identity()
    state = torch.load(weights, weights_only=True)
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
    network.eval().to(device)
    dataset = PlainDataset(sorted(folder.iterdir())[:count], image_size)
    loader = torch.utils.data.DataLoader(dataset, batch_size=32, num_workers=2)
    rows = []
    started = time.perf_counter()
    with torch.no_grad():
        rows = [network(batch.to(device)).cpu().numpy() for batch in loader]
    return count / (time.perf_counter() - started), np.concatenate(rows)


def run_forward_only(folder: Path, config: ExtractConfig, count: int) -> float:
    """Images/s of the engine fed from memory, batch after batch, as `extract` feeds it."""
    encoder = build_encoder(config)
    engine = build_engine(encoder, config)
    size = engine.batch_size
    images = find_images(folder)[: 4 * size]
    batches = list(load_batches(images, encoder.prepare, least_size=encoder.least_size, batch_size=size, workers=2))

    def repeated(total: int) -> list[Batch]:
        return [batches[number % len(batches)] for number in range(total // size)]

    for _ in encode_batches(engine, repeated(4 * size)):  # warm up
        pass
    started = time.perf_counter()
    encoded = sum(len(rows) for _, rows in encode_batches(engine, repeated(count)))
    return encoded / (time.perf_counter() - started)


def measure_forward_only(folder: Path, arguments: argparse.Namespace, engine: str) -> float:
    """`run_forward_only` in its own process, where nothing was done before."""
    words = [str(folder), "--weights", str(arguments.weights), "--images", str(arguments.images)]
    words += ["--image-size", str(arguments.image_size)]
    command = [sys.executable, __file__, *words, "--forward-only", engine]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def parse_engine(words: str, weights: Path, image_size: int) -> ExtractConfig:
    """The configuration that "ENGINE [--precision P] [--batch-size N] [--compile] [--decode D] [--jobs N]" names.

    It is that of one process.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--decode", default="cpu")
    parser.add_argument("--jobs")
    options = vars(parser.parse_args(shlex.split(words)))
    del options["jobs"]
    return ExtractConfig(weights=str(weights), preprocess="crop", image_size=image_size, **options)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    products = (left.astype(np.float64) * right).sum(axis=1)
    values: np.ndarray = products / np.linalg.norm(left.astype(np.float64), axis=1) / np.linalg.norm(right, axis=1)
    return values


@dataclass
class Rates:
    """Images/s of an engine, one for each round."""

    forward_only: list[float] = field(default_factory=list)
    """The faster of two, before and after `extract`: it is a limit, on machines that change their speed."""
    extract: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)
    """From the command's start to its end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="state_dict of a ResNet-50")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--plain-images", type=int, default=500, help="images for the plain loop, whose rate is steady")
    parser.add_argument("--rounds", type=int, default=3, help="of the plain loop and all engines in turn")
    parser.add_argument("--memory-images", type=int, default=50_000, help="0 leaves the memory test out")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--engines", nargs="+", default=["openvino", "torch"], help="each with its options")
    parser.add_argument("--forward-only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.forward_only:
        config = parse_engine(arguments.forward_only, arguments.weights, arguments.image_size)
        print(run_forward_only(arguments.photos, config, arguments.images // 2))
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = link_photos(arguments.photos, work / "photos", arguments.images)
        plain_images = min(arguments.plain_images, arguments.images)
        network = ("--weights", arguments.weights, "--image-size", arguments.image_size, "--preprocess", "crop")
        plain_rates: list[float] = []
        engines = {engine: Rates() for engine in arguments.engines}
        likeness: dict[str, np.ndarray] = {}
        for round_number in range(arguments.rounds):
            plain_rate, exact = run_plain(folder, arguments.weights, plain_images, arguments.image_size)
            plain_rates.append(plain_rate)
            for number, (engine, rates) in enumerate(engines.items()):
                before = measure_forward_only(folder, arguments, engine)
                output = work / f"{number}-{round_number}.h5"
                words = ("--output", output, *network, "--engine", *shlex.split(engine))
                command = run_command("extract", folder, *words)
                rates.forward_only.append(max(before, measure_forward_only(folder, arguments, engine)))
                rates.extract.append(command.rate)
                rates.command.append(arguments.images / command.seconds)
                likeness[engine] = cosines(FeatureStore.open(output).read(range(len(exact))), exact)
            print(f"round {round_number}: plain loop {plain_rate:.1f}; {engines}", file=sys.stderr, flush=True)
        plain = statistics.median(plain_rates)
        print(
            "| engine | forward only, images/s, x plain | extract, images/s, x plain | share of forward only "
            "| whole command, images/s, x plain | cosine to fp32: least, mean |\n|---|---|---|---|---|---|"
        )
        print(f"| plain loop | | {plain:.1f}, 1.0 | | | |")
        for engine, rates in engines.items():
            shown = [
                f"{rate:.1f}, {rate / plain:.1f}"
                for rate in map(statistics.median, (rates.forward_only, rates.extract, rates.command))
            ]
            shares = map(operator.truediv, rates.extract, rates.forward_only)
            shown.insert(2, f"{statistics.median(shares):.2f}")
            print(f"| {engine} | {' | '.join(shown)} | {likeness[engine].min():.5f}, {likeness[engine].mean():.5f} |")
        if arguments.memory_images:
            many = link_photos(arguments.photos, work / "many", arguments.memory_images)
            print("\n| images | peak memory, GB |\n|---|---|")
            for source, count in ((folder, arguments.images), (many, arguments.memory_images)):
                output = work / f"memory-{count}.h5"
                command = run_command(
                    *("extract", source, "--output", output, "--weights", arguments.weights),
                    *("--preprocess", "squash", "--image-size", 64),
                )
                print(f"| {count:,} | {command.peak_rss_gb:.2f} |", flush=True)


if __name__ == "__main__":
    main()
