"""TIFFs of every kind, written by a library that is not Pillow: each is decoded to the image in it, or refused.

python benchmarks/tiffs.py [--every 1] [--show 20]

tifffile and imagecodecs write one scene in each combination of sample type, layout, order of planes, compression,
predictor, byte order, tiling and header. A decoded file is right if each level differs from the scene's by at most two
of 255 (rounding, and that of transparency), after lossy compression by eight on average. `--every N` tries each Nth.
"""

import argparse
import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import decode_pixels

HEIGHT, WIDTH = 40, 56  # two and a half tiles high, three and a half wide
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
LAYOUTS = {  # name -> photometric interpretation, samples, meaning of the last sample
    "grey": ("minisblack", 1, None),
    "grey, 0 is white": ("miniswhite", 1, None),
    "grey and alpha": ("minisblack", 2, "unassalpha"),
    "grey and another": ("minisblack", 2, "unspecified"),
    "RGB": ("rgb", 3, None),
    "RGB and alpha": ("rgb", 4, "unassalpha"),
    "RGB times alpha": ("rgb", 4, "assocalpha"),
    "RGB and another": ("rgb", 4, "unspecified"),
    "CMYK": ("separated", 4, None),
    "palette": ("palette", 1, None),
}
LOSSLESS = (None, "lzw", "adobe_deflate", "packbits", "zstd", "lzma")
LOSSY = ("jpeg", "webp", "jpeg2000")
TILINGS: tuple[dict[str, Any], ...] = ({}, {"rowsperstrip": 7}, {"tile": (16, 16)})


class Kind(NamedTuple):
    """One combination."""

    dtype: str
    layout: str
    planar: str
    compression: str | None
    predictor: bool
    byte_order: Literal["<", ">"]
    tiling: int
    is_big: bool


def kinds() -> Iterator[Kind]:
    """Every combination that tifffile may be able to write."""
    choices = (DTYPES, LAYOUTS, ("contig", "separate"), LOSSLESS + LOSSY, (False, True), "<>", range(3), (False, True))
    for kind in itertools.starmap(Kind, itertools.product(*choices)):
        is_8_bit, samples = kind.dtype == "uint8", LAYOUTS[kind.layout][1]
        is_bare = kind.compression is None or kind.compression in LOSSY
        if (
            (kind.planar == "separate" and samples == 1)
            or (kind.predictor and (is_bare or kind.layout == "palette"))
            or (kind.compression in LOSSY and (not is_8_bit or kind.layout != "RGB" or kind.planar == "separate"))
            or (kind.layout == "palette" and not is_8_bit)
            or (kind.is_big and kind.compression not in (None, "adobe_deflate"))
            or (kind.tiling == 0 and kind.compression in ("zstd", "lzma"))
        ):
            continue
        yield kind


def draw_scene() -> npt.NDArray[np.float64]:
    """[H, W, 4] from 0 to 1: red, green, blue and alpha, each with its own gradient and with both ends."""
    down, across = np.meshgrid(np.linspace(0, 1, HEIGHT), np.linspace(0, 1, WIDTH), indexing="ij")
    scene = np.stack([down, across, 1 - down * across, (down + across) / 2], axis=-1)
    scene += np.random.default_rng(0).uniform(-0.05, 0.05, scene.shape)
    scene = scene.clip(0, 1)
    scene[0, 0], scene[-1, -1] = 0, 1
    levels: npt.NDArray[np.float64] = (
        np.rint(scene * 15) / 15
    )  # a multiple of 17 in 8 bits, so that rounding is the same everywhere
    return levels


def encode(scene: npt.NDArray[np.float64], kind: Kind) -> tuple[bytes, npt.NDArray[np.float64]]:
    """The file, and what it shows on white: [H, W, 3] from 0 to 255. Raises ValueError where there is no such TIFF."""
    photometric, count, last = LAYOUTS[kind.layout]
    white = np.float64(_white(kind.dtype))
    colors, alpha = scene[..., :3], scene[..., 3:]
    options: dict[str, Any] = {"photometric": photometric}
    shown = colors if count >= 3 else colors[..., :1].repeat(3, axis=2)
    samples = colors[..., : min(count, 3)]
    if kind.layout in ("grey and alpha", "grey and another"):
        samples = np.concatenate([colors[..., :1], alpha], axis=2)
    elif kind.layout == "CMYK":
        black = scene[..., 3:] / 2
        samples = np.concatenate([colors, black], axis=2)
        shown = (1 - colors) * (1 - black)
    elif count == 4:
        samples = np.concatenate([colors * alpha if last == "assocalpha" else colors, alpha], axis=2)
    if last is not None:
        options["extrasamples"] = [last]
        if last != "unspecified":
            shown = shown * alpha + 1 - alpha
    if kind.layout == "grey, 0 is white":
        samples = 1 - samples
    levels = samples * white
    array = levels.astype(kind.dtype) if kind.dtype.startswith("float") else np.rint(levels).astype(kind.dtype)
    if kind.layout == "palette":
        table = np.random.default_rng(1).integers(0, 256, (3, 256))
        options["colormap"] = (table * 257).astype(np.uint16)
        shown = table.T[array[..., 0]] / 255
    elif kind.dtype in ("int8", "int16"):  # read on the scale of unsigned samples
        shown = shown * 0 + samples[..., :1] * white / (255 if kind.dtype == "int8" else 65535)
    if count == 1:
        array = array[..., 0]
    elif kind.planar == "separate":
        array = np.moveaxis(array, 2, 0)
    if count > 1:
        options["planarconfig"] = kind.planar
    buffer = io.BytesIO()
    options |= {"compression": kind.compression, "predictor": kind.predictor, **TILINGS[kind.tiling]}
    tifffile.imwrite(
        buffer, array, byteorder=kind.byte_order, bigtiff=kind.is_big, metadata=None, software=False, **options
    )
    return buffer.getvalue(), shown * 255


def _white(dtype: str) -> float:
    return 1.0 if dtype.startswith("float") else float(np.iinfo(dtype).max)


def judge(scene: npt.NDArray[np.float64], kind: Kind) -> str:
    """`no such TIFF`, `right`, `wrong`, or the reason of a refusal."""
    try:
        data, shown = encode(scene, kind)
    except (ValueError, RuntimeError, KeyError, NotImplementedError):  # as its writer says
        return "no such TIFF"
    try:
        pixels = decode_pixels(data)
    except ImageError as exc:
        return str(exc)
    if pixels.shape != shown.shape:
        return "wrong"
    apart = np.abs(pixels - shown)
    is_right = apart.mean() <= 8 if kind.compression in LOSSY else apart.max() <= 2
    return "right" if is_right else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--show", type=int, default=20, help="how many wrong ones are listed")
    arguments = parser.parse_args()
    scene = draw_scene()
    outcomes: dict[Kind, str] = {kind: judge(scene, kind) for kind in list(kinds())[:: arguments.every]}
    tried = {kind: outcome for kind, outcome in outcomes.items() if outcome != "no such TIFF"}
    for kind in [kind for kind, outcome in tried.items() if outcome == "wrong"][: arguments.show]:
        print("wrong:", kind)
    print("| samples | tried | right | refused | wrong |\n|---|---|---|---|---|")
    for name, start in (("unsigned integers", "uint"), ("signed integers", "int"), ("floats", "float"), ("all", "")):
        found = Counter(outcome for kind, outcome in tried.items() if kind.dtype.startswith(start))
        right, wrong, total = found["right"], found["wrong"], found.total()
        print(f"| {name} | {total:,} | {right:,} | {total - right - wrong:,} | {wrong:,} |")
    sys.exit("wrong" in tried.values())


if __name__ == "__main__":
    main()
