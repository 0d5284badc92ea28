"""Damaged images: each is decoded or refused with a reason, and where the pixels can be known, none is wrong.

python benchmarks/mutations.py [--count 80000] [--seed 0] [--seconds 600]

Small images of each format are damaged at random: bytes are changed, cut off, replaced by zeros to the end, left out
or doubled. Known are the pixels of a file that is cut off: those of the whole file, or a reason. So are those of a PNG,
whose parts have checksums, and of a JPEG or GIF with zeros at its end. A JPEG may have other pixels in 5 % of its area,
which is the rule for damage that restart markers keep in bounds.
"""

import argparse
import functools
import io
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import decode_pixels

DAMAGES = ("changed", "cut off", "zeros at the end", "left out", "doubled")
KNOWN = {"PNG": DAMAGES, **dict.fromkeys(("JPEG", "GIF"), ("cut off", "zeros at the end"))}
MOST_APART = {"JPEG": 0.05}  # of the pixels


def draw_images() -> Iterator[tuple[str, bytes]]:
    """Format and content of each image that is damaged."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    color = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    alpha = color.copy()
    alpha.putalpha(color.convert("L"))
    pages = {"save_all": True, "append_images": [color.rotate(180)]}
    ways: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", color, {}),
        ("JPEG", color, {"progressive": True}),
        ("JPEG", color, {"restart_marker_rows": 1}),
        ("JPEG", color.resize((256, 640)), {"restart_marker_rows": 1}),
        ("JPEG", color.convert("L"), {"restart_marker_blocks": 2}),
        ("JPEG", color.convert("CMYK"), {}),
        ("PNG", color, {}),
        ("PNG", alpha, {"dpi": (300, 300)}),
        ("PNG", color.quantize(16), {"transparency": 3}),
        ("PNG", color.convert("I;16"), {}),
        ("GIF", color, {}),
        ("GIF", color, pages),
        ("WebP", color, {}),
        ("WebP", alpha, {"lossless": True}),
        ("WebP", color, pages),
        ("BMP", color, {}),
        ("BMP", alpha, {}),
        ("BMP", color.quantize(16), {}),
        ("TIFF", color, {}),
        ("TIFF", color, {"compression": "tiff_lzw"}),
        ("TIFF", alpha, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", color.convert("1"), {"compression": "group4"}),
        ("TIFF", color, {"compression": "jpeg"}),
    ]
    for image_format, image, options in ways:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        yield image_format, buffer.getvalue()
    yield "JPEG", simplejpeg.encode_jpeg(np.asarray(color), quality=90, colorsubsampling="411")
    values = np.asarray(color, np.float32) / 255
    for array, settings in (
        (values, {"photometric": "rgb"}),
        (values, {"photometric": "rgb", "compression": "lzw", "predictor": True, "tile": (16, 16)}),
        (np.moveaxis((values * 65535).astype(np.uint16), 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        (
            (values[..., 0] * 30000).astype(np.int16),
            {"compression": "adobe_deflate", "byteorder": ">", "rowsperstrip": 5},
        ),
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, array, **settings)
        yield "TIFF", buffer.getvalue()


def damage(content: bytes, kind: str, random: np.random.Generator) -> bytes:
    at = int(random.integers(0, len(content)))
    length = int(random.integers(1, 1 + min(20, len(content) - at)))
    if kind == "changed":
        changed = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 5)):
            changed[place] = random.integers(0, 256)
        return bytes(changed)
    if kind == "cut off":
        return content[:at]
    if kind == "zeros at the end":
        return content[:at] + bytes(len(content) - at)
    if kind == "left out":
        return content[:at] + content[at + length :]
    return content[: at + length] + content[at:]


def share_apart(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> float:
    """The share of the pixels that differ."""
    return float((left != right).any(axis=2).mean()) if left.shape == right.shape else 1.0


@functools.cache
def whole_images() -> list[tuple[str, bytes, npt.NDArray[np.uint8]]]:
    """Format, content and pixels of each image that is damaged."""
    return [(image_format, content, decode_pixels(content)) for image_format, content in draw_images()]


def try_damaged_image(number: int, random: np.random.Generator) -> tuple[str, str]:
    """The format and the outcome of one image; the numbers go through images and kinds of damage."""
    images = whole_images()
    image_format, content, pixels = images[number % len(images)]
    kind = DAMAGES[number // len(images) % len(DAMAGES)]
    try:
        found = decode_pixels(damage(content, kind, random))
    except ImageError:
        return image_format, "refused"
    apart = share_apart(found, pixels)
    if apart == 0:
        return image_format, "the same pixels"
    if kind not in KNOWN.get(image_format, ()) and kind != "cut off":
        return image_format, "others, unknowable"
    if apart <= MOST_APART.get(image_format, 0):
        return image_format, "others, within the rule"
    print(f"number {number}, image {number % len(images)} ({image_format}), {kind}: {apart:.1%} apart")
    return image_format, "others, known wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=80_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    whole_images()
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    started, slowest = time.monotonic(), 0.0
    for number in range(arguments.count):
        if time.monotonic() - started > arguments.seconds:
            break
        before = time.monotonic()
        image_format, outcome = try_damaged_image(number, random)
        outcomes[image_format][outcome] += 1
        slowest = max(slowest, time.monotonic() - before)
    columns = ["refused", "the same pixels", "others, within the rule", "others, unknowable", "others, known wrong"]
    print(f"\n| format | tried | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for name in (*outcomes, "all"):
        counts = sum((found for key, found in outcomes.items() if name in (key, "all")), Counter())
        print(f"| {name} | {counts.total():,} | {' | '.join(f'{counts[column]:,}' for column in columns)} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n{time.monotonic() - started:.0f} s, the slowest {slowest:.2f} s, peak memory {peak:.2f} GB")
    sys.exit(any(found["others, known wrong"] for found in outcomes.values()))


if __name__ == "__main__":
    main()
