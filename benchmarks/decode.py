"""Decoding images: Pillow against what `extract` uses, whole and at reduced size, in one run.

python benchmarks/decode.py PHOTOS --weights resnet50.pth [--count 60]

Rates are of one thread, from bytes in memory to the 224 x 224 image that the network sees. The large images are the
photographs enlarged to 4000 pixels with Lanczos and saved as JPEG again: their decoding costs what a camera's does.
The effect of the reduced size is shown twice, in levels of the prepared image and as the cosine of the features, next
to the effect of changing 14 % of the image's levels by one at random. A last table shows what each eighth of the size
costs, decoded and resized, just above and below the halves: the images are enlarged to 1700 and 3200 pixels.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from captionmill.data.features.spec import Preprocess
from captionmill.data.images.decode import Pixels, decode_pixels
from captionmill.data.images.find import find_images
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import build_engine
from captionmill.stages.settings import ExtractConfig

Prepare = Callable[[bytes], Pixels]
_KINDS: dict[str, dict[str, int | str | bool]] = {
    "4:2:0": {},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:0, progressive": {"progressive": True},
}


def best_rates(ways: Sequence[Prepare], contents: list[bytes]) -> list[float]:
    """Images/s of each way, the best of five rounds; the ways take turns, so that both see the machine's moods."""
    best = [0.0] * len(ways)
    for _ in range(5):
        for number, prepare in enumerate(ways):
            started = time.perf_counter()
            for content in contents:
                prepare(content)
            best[number] = max(best[number], len(contents) / (time.perf_counter() - started))
    return best


def decode_with_pillow(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decode_strictly(content: bytes) -> Pixels:
    """As `extract` does, without all that it does for other files."""
    pixels: Pixels = simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False, strict=True)
    return pixels


def prepare_at(eighths: int, encoder: Encoder, content: bytes) -> Pixels:
    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    least = {"min_width": -(-width * eighths // 8), "min_height": -(-height * eighths // 8)}
    return encoder.prepare(simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False, strict=True, **least))


def enlarge(content: bytes, longer: int, **options: int | str | bool) -> bytes:
    image = Image.open(io.BytesIO(content))
    scale = longer / max(image.size)
    buffer = io.BytesIO()
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    large.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def features(encoder: Encoder, config: ExtractConfig, images: list[Pixels]) -> np.ndarray:
    engine = build_engine(encoder, config)
    size = engine.batch_size
    rows = [engine.submit(images[start : start + size])() for start in range(0, len(images), size)]
    return np.concatenate(rows).astype(np.float64)


def shake(image: Pixels) -> Pixels:
    """`image` with 14 % of its levels changed by one, as another rounding would."""
    chances = np.random.default_rng(0).random(image.shape)
    shaken: Pixels = np.clip(image + (chances < 0.07).astype(int) - (chances > 0.93), 0, 255).astype(np.uint8)
    return shaken


def least_cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / norms).min())


def measure_eighths(encoder: Encoder, contents: list[bytes]) -> None:
    """Print the milliseconds per image at each eighth of the size that leaves REDUCING_GAP times what is needed."""
    print("\n| longer side, kind | eighths: ms to decode and resize |\n|---|---|")
    for longer, tried in ((1700, (8, 7, 6, 5)), (3200, (4, 3))):
        for kind, options in _KINDS.items():
            large = [enlarge(content, longer, **options) for content in contents]
            ways = [partial(prepare_at, eighths, encoder) for eighths in tried]
            rates = zip(tried, best_rates(ways, large), strict=True)
            print(f"| {longer}, {kind} |", ", ".join(f"{n}: {1000 / rate:.1f}" for n, rate in rates), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--count", type=int, default=60)
    arguments = parser.parse_args()
    contents = [Path(image.path).read_bytes() for image in find_images(arguments.photos)[: arguments.count]]
    config = ExtractConfig(weights=arguments.weights, precision="fp32")
    encoder = build_encoder(config)

    def with_pillow(content: bytes) -> Pixels:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        return np.asarray(image.resize((encoder.spec.image_size, encoder.spec.image_size), Image.Resampling.BILINEAR))

    def whole(content: bytes) -> Pixels:
        return encoder.prepare(decode_pixels(content))

    def reduced(content: bytes) -> Pixels:
        return encoder.prepare(decode_pixels(content, at_least=encoder.least_size))

    apart = np.stack([np.abs(with_pillow(content).astype(int) - whole(content)) for content in contents])
    print(
        f"{len(contents)} photographs as Pillow and as extract prepare them: {(apart > 0).mean():.2%} of the levels "
        f"differ, by {apart.max()} at most\n"
    )
    large = [enlarge(content, 4000) for content in contents]
    print("| images | Pillow, images/s | extract, images/s | ratio |\n|---|---|---|---|")
    measured: list[tuple[str, list[bytes], tuple[Prepare, Prepare]]] = [
        ("photographs, decoded only", contents, (decode_with_pillow, decode_strictly)),
        ("photographs, prepared", contents, (with_pillow, reduced)),
        ("enlarged to 4000 pixels, prepared", large, (with_pillow, reduced)),
    ]
    for name, images, ways in measured:
        rates = best_rates(ways, images)
        print(f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[1] / rates[0]:.1f} |", flush=True)
    print("\n| 4000 pixels, reduced | mean difference, levels | largest | least cosine | of random levels |")
    print("|---|---|---|---|---|")
    kinds: tuple[Preprocess, ...] = ("crop", "squash", "whole")
    for preprocess in kinds:
        config = ExtractConfig(weights=arguments.weights, precision="fp32", preprocess=preprocess)
        encoder = build_encoder(config)
        pairs = [(whole(content), reduced(content)) for content in large]
        differences = [np.abs(left.astype(int) - right.astype(int)) for left, right in pairs]
        mean, largest = np.mean([d.mean() for d in differences]), max(int(d.max()) for d in differences)
        shaken = [shake(left) for left, _ in pairs]
        sides = [[left for left, _ in pairs], [right for _, right in pairs], shaken]
        if preprocess == "whole":  # images of many shapes: one at a time
            rows = [np.concatenate([features(encoder, config, [image]) for image in side[:8]]) for side in sides]
        else:
            rows = [features(encoder, config, side) for side in sides]
        cosine, control = least_cosine(rows[0], rows[1]), least_cosine(rows[0], rows[2])
        print(f"| {preprocess} | {mean:.2f} | {largest} | {cosine:.4f} | {control:.4f} |", flush=True)
    measure_eighths(build_encoder(ExtractConfig(weights=arguments.weights)), contents[:8])


if __name__ == "__main__":
    main()
