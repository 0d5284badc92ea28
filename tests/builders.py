"""What several test modules build: specs, rows, stores."""

import signal
from pathlib import Path

import numpy as np
from PIL import Image

from captionmill.data.feature_spec import FeatureSpec
from captionmill.data.feature_writer import FeatureWriter
from captionmill.data.store_file import Features

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220), "yellow": (240, 220, 40)}


def make_spec(**changes: object) -> FeatureSpec:
    values = FeatureSpec("resnet50", "imagenet1k_v1", "a" * 64, "crop", 224, 256, feature_dim=8).to_json()
    return FeatureSpec.from_json(values | changes)


def make_rows(count: int, *, dim: int = 8, seed: int = 0) -> Features:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def make_store(path: Path, keys: list[str], rows: Features, spec: FeatureSpec | None = None) -> Path:
    with FeatureWriter(path, spec or make_spec(feature_dim=rows.shape[1]), dtype="float32", made_by={}) as writer:
        writer.add(keys, rows)
    return path


def listen_to_ctrl_c() -> None:
    """For a child process: a shell that starts the tests in the background tells it to ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def draw_photos(folder: Path) -> Path:
    """Eight one-coloured pictures, two of each colour, and one file that is no picture."""
    (folder / "more").mkdir(parents=True)
    for number, (name, colour) in enumerate([*COLOURS.items(), *COLOURS.items()]):
        path = folder / ("more" if number % 2 else "") / f"{name}_{number}.{'png' if number < 4 else 'JPG'}"
        Image.new("RGB", (40 + number, 30), colour).save(path, "PNG" if number < 4 else "JPEG")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return folder
