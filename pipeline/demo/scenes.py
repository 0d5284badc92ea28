"""The embedded sample: drawn scenes with captions, for the demo and the tests, without a download.

Each image depends only on the seed and its number, so any number of processes draws the same files.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed
from PIL import Image, ImageDraw

from captionmill.data.csv_tables import csv_line
from captionmill.data.files import write_bytes, write_text
from captionmill.pipeline.demo.scene_captions import Scene, random_scene, word_captions

Levels = npt.NDArray[np.float32]  # (height, width) or (height, width, 3), grey levels up to 255 or shares
Points = npt.NDArray[np.float64]  # (points, 2): across and down

SHADES = {  # chosen to stand out from every background
    "red": (212, 32, 36),
    "orange": (242, 132, 16),
    "yellow": (250, 222, 30),
    "green": (8, 128, 58),
    "blue": (28, 62, 212),
    "purple": (128, 40, 176),
    "pink": (248, 128, 188),
}
RADIUS_RANGES = {"small": (0.14, 0.17), "large": (0.25, 0.29)}  # shares of the image's height
WIDTH_RANGE = (176, 208)  # pixels; the height is 3/4 of it
OVERSAMPLING = 3  # outlines are drawn larger by this factor, then averaged, for smooth edges
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Texture:
    """The look of a background: one colour, with soft blotches and fine grain in its brightness."""

    shade: tuple[int, int, int]
    blotch: tuple[int, int]  # pixels across and down: wide for waves, tall for blades of grass
    blotch_contrast: float  # standard deviations in grey levels of 255
    grain_contrast: float
    light_dots: int = 0  # number of lit pixels: the stars of the night


TEXTURES = {
    "sand": Texture((226, 204, 160), blotch=(14, 6), blotch_contrast=5, grain_contrast=10),
    "grass": Texture((142, 182, 98), blotch=(2, 11), blotch_contrast=15, grain_contrast=4),
    "snow": Texture((236, 241, 247), blotch=(28, 28), blotch_contrast=5, grain_contrast=2),
    "water": Texture((118, 182, 208), blotch=(26, 3), blotch_contrast=13, grain_contrast=2),
    "night": Texture((20, 23, 46), blotch=(36, 36), blotch_contrast=5, grain_contrast=3, light_dots=40),
}


def draw_samples(
    folder: Path,
    count: int,
    *,
    seed: int,
    captions_path: Path | None = None,
    held_out_share: float = 0.1,
    name: str = "scene",
    workers: int = -1,
) -> dict[str, Scene]:
    """Draw `count` images into `folder` and return the scenes by image key (the path under `folder`).

    Each is called `name` and its number. Every other image is a PNG, the rest JPEG; one in four is in a sub-folder.
    With `captions_path` a CSV of image, caption and split is written too: 5 rows per image, `held_out_share` of the
    images in val and as many in test. `workers` is a number of processes, -1 for one per core.
    """
    keys = [_name_image(name, index) for index in range(count)]
    for parent in {(folder / key).parent for key in keys}:
        parent.mkdir(parents=True, exist_ok=True)
    scenes: list[Scene] = Parallel(n_jobs=workers)(
        delayed(write_scene)(folder / key, seed, index) for index, key in enumerate(keys)
    )
    if captions_path is not None:
        _write_scene_captions(captions_path, dict(zip(keys, scenes, strict=True)), seed, held_out_share)
    return dict(zip(keys, scenes, strict=True))


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """An image of a scene; positions, tilts, shades and the texture are drawn from `rng`."""
    width = int(rng.integers(WIDTH_RANGE[0], WIDTH_RANGE[1] + 1))
    height = width * 3 // 4
    pixels = _paint_background(TEXTURES[scene.background], (width, height), rng)  # (height, width, 3)
    radii = [height * rng.uniform(*RADIUS_RANGES[scene_object.size]) for scene_object in scene.objects]
    centres = _find_free_centres(radii, (width, height), rng)
    for scene_object, radius, centre in zip(scene.objects, radii, centres, strict=True):
        outline = _rotate(OUTLINES[scene_object.shape], rng.uniform(-15, 15)) * radius + centre
        hole = outline * RING_HOLE + centre * (1 - RING_HOLE) if scene_object.shape == "ring" else None
        coverage = _draw_coverage(outline, hole, (width, height))[..., None]
        shade = np.array(SHADES[scene_object.colour]) * rng.uniform(0.92, 1.04) + rng.uniform(-8, 8, 3)
        pixels += coverage * (shade.astype(np.float32) - pixels)
    pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * 3
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _name_image(name: str, index: int) -> str:
    """In turns of eight: both formats in the folder itself and in a sub-folder."""
    file_name = f"{name}_{index:05d}.{'png' if index % 2 == 0 else 'jpg'}"
    return f"album/{file_name}" if index % 8 >= 6 else file_name


def write_scene(path: Path, seed: int, index: int) -> Scene:
    """Draw the scene of a seed and a number to `path`, a PNG or else a JPEG; OSError if it does not fit on the disk."""
    rng = np.random.default_rng([seed, index])
    scene = random_scene(rng)
    image, content = draw_scene(scene, rng), io.BytesIO()  # Pillow writes half a JPEG to a full disk without an error
    if path.suffix == ".png":
        image.save(content, "PNG", compress_level=1)
    else:
        image.save(content, "JPEG", quality=JPEG_QUALITY)
    write_bytes(path, content.getvalue(), flushes=False)
    return scene


def _write_scene_captions(path: Path, scenes: dict[str, Scene], seed: int, held_out_share: float) -> None:
    rng = np.random.default_rng([seed, len(scenes), 1])
    held_out_count = round(len(scenes) * held_out_share)
    splits = ["val"] * held_out_count + ["test"] * held_out_count
    splits += ["train"] * (len(scenes) - len(splits))
    lines = [csv_line(["image", "caption", "split"])]
    for (key, scene), place in zip(scenes.items(), rng.permutation(len(scenes)), strict=True):
        lines += [csv_line([key, caption, splits[place]]) for caption in word_captions(scene, rng)]
    write_text(path, b"".join(lines).decode())


def _paint_background(texture: Texture, size: tuple[int, int], rng: np.random.Generator) -> Levels:
    width, height = size
    coarse_shape = (height // texture.blotch[1] + 2, width // texture.blotch[0] + 2)
    coarse = Image.fromarray(rng.standard_normal(coarse_shape, dtype=np.float32))
    brightness = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) * texture.blotch_contrast
    brightness = brightness + rng.standard_normal((height, width), dtype=np.float32) * texture.grain_contrast
    rows, columns = rng.integers(height, size=texture.light_dots), rng.integers(width, size=texture.light_dots)
    brightness[rows, columns] += rng.uniform(60, 180, texture.light_dots).astype(np.float32)
    shade = (np.array(texture.shade) + rng.uniform(-6, 6, 3)).astype(np.float32)
    return (brightness[..., None] + shade).astype(np.float32)


def _find_free_centres(radii: list[float], size: tuple[int, int], rng: np.random.Generator) -> list[Points]:
    """Centres with which the objects are completely inside the image and apart from each other."""
    while True:  # 5 tries on average for two objects (5,000 scenes)
        centres = [rng.uniform(REACH * radius, np.array(size) - REACH * radius) for radius in radii]
        if len(radii) == 1 or math.dist(*centres) > REACH * sum(radii):
            return centres


def _draw_coverage(outline: Points, hole: Points | None, size: tuple[int, int]) -> Levels:
    """The share of each pixel inside an outline and outside its hole, 0 to 1."""
    mask = Image.new("L", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
    canvas = ImageDraw.Draw(mask)
    canvas.polygon((outline * OVERSAMPLING).ravel().tolist(), fill=255)
    if hole is not None:
        canvas.polygon((hole * OVERSAMPLING).ravel().tolist(), fill=0)
    return np.asarray(mask.reduce(OVERSAMPLING)).astype(np.float32) / np.float32(255)


def _rotate(outline: Points, degrees: float) -> Points:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotated: Points = outline @ np.array([[cosine, sine], [-sine, cosine]])
    return rotated


def _regular_outline(corners: int, *, start_degrees: float, inner: float = 1.0) -> Points:
    """A regular polygon in the unit circle, y down; every other corner has the distance `inner` from the centre."""
    angles = np.radians(start_degrees) + np.arange(corners) * 2 * np.pi / corners
    reach = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    return np.stack([np.cos(angles) * reach, np.sin(angles) * reach], axis=1)


def _heart_outline() -> Points:
    """The curve x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t (mathworld.wolfram.com/HeartCurve.html)."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 16


REACH = 1.2  # largest distance of an outline from its centre: the triangle's lower corners, and a margin
RING_HOLE = 0.58  # of the ring's radius
OUTLINES = {  # scaled to look equally large; all within REACH
    "circle": _regular_outline(48, start_degrees=0) * 0.95,
    "square": _regular_outline(4, start_degrees=45) * 1.15,
    "triangle": _regular_outline(3, start_degrees=-90) * 1.1 + (0.0, 0.1),
    "star": _regular_outline(10, start_degrees=-90, inner=0.42) * 1.1,
    "heart": _heart_outline(),
    "ring": _regular_outline(48, start_degrees=0),
}
