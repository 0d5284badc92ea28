"""Decoding pictures: Pillow against what `extract` uses, whole and at reduced size, in one run.

python benchmarks/decode.py PHOTOS --weights resnet50.pth [--count 60]

Rates are of one thread, from bytes in memory to the 224 x 224 picture that the network sees. The large pictures are the
photographs enlarged to 4000 pixels with Lanczos and saved as JPEG again: their decoding costs what a camera's does.
What the reduced size changes is told twice, in levels of the prepared picture and as the cosine of the features.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from captionmill.data.image_files import find_images
from captionmill.data.images import decode_image
from captionmill.stages.config import ExtractConfig, Preprocess
from captionmill.stages.encoding.encoder import Encoder, Pixels, build_encoder
from captionmill.stages.encoding.engine import build_engine

Prepare = Callable[[bytes], Pixels]


def rate(prepare: Prepare, contents: list[bytes], seconds: float = 3.0) -> float:
    """Pictures/s."""
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds:
        prepare(contents[count % len(contents)])
        count += 1
    return count / (time.perf_counter() - started)


def enlarge(content: bytes, longer: int) -> bytes:
    image = Image.open(io.BytesIO(content))
    scale = longer / max(image.size)
    buffer = io.BytesIO()
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def features(encoder: Encoder, config: ExtractConfig, pictures: list[Pixels]) -> np.ndarray:
    engine = build_engine(encoder, config)
    rows = [engine.submit(np.stack(pictures[start : start + 32]))() for start in range(0, len(pictures), 32)]
    return np.concatenate(rows).astype(np.float64)


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
        return encoder.prepare(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))

    def whole(content: bytes) -> Pixels:
        return encoder.prepare(decode_image(content))

    def reduced(content: bytes) -> Pixels:
        return encoder.prepare(decode_image(content, at_least=encoder.least_size))

    same = sum(bool((with_pillow(content) == whole(content)).all()) for content in contents)
    print(f"{same} of {len(contents)} photographs are prepared bit for bit alike by Pillow and by extract\n")
    large = [enlarge(content, 4000) for content in contents]
    print("| pictures | Pillow, images/s | extract, images/s | ratio |\n|---|---|---|---|")
    for name, pictures in (("photographs as they are", contents), ("enlarged to 4000 pixels", large)):
        rates = [rate(prepare, pictures) for prepare in (with_pillow, reduced)]
        print(f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[1] / rates[0]:.1f} |", flush=True)
    print("\n| 4000 pixels, reduced | mean difference, levels | largest | least cosine |\n|---|---|---|---|")
    kinds: tuple[Preprocess, ...] = ("crop", "squash", "whole")
    for preprocess in kinds:
        config = ExtractConfig(weights=arguments.weights, precision="fp32", preprocess=preprocess)
        encoder = build_encoder(config)
        pairs = [(whole(content), reduced(content)) for content in large]
        differences = [np.abs(left.astype(int) - right.astype(int)) for left, right in pairs]
        mean, largest = np.mean([d.mean() for d in differences]), max(int(d.max()) for d in differences)
        if preprocess == "whole":  # pictures of many shapes: one at a time
            rows = [np.concatenate([features(encoder, config, [pair[side]]) for pair in pairs[:8]]) for side in (0, 1)]
        else:
            rows = [features(encoder, config, [pair[side] for pair in pairs]) for side in (0, 1)]
        norms = np.linalg.norm(rows[0], axis=1) * np.linalg.norm(rows[1], axis=1)
        cosine = float(((rows[0] * rows[1]).sum(axis=1) / norms).min())
        print(f"| {preprocess} | {mean:.2f} | {largest} | {cosine:.5f} |", flush=True)


if __name__ == "__main__":
    main()
