"""Captions that the teachers of a training write of its training images, as further ones to learn from.

They are kept in the work folder as they come, for a training that is interrupted.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from captionmill.data.errors import TrainingError
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.progress import Progress
from captionmill.stages.decoding.captioner import BLOCK_ROWS, Captioner, decode_rows
from captionmill.stages.settings import SearchConfig
from captionmill.stages.training.checkpoint import (
    TEACHER_CAPTIONS_NAME,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from captionmill.stages.training.state import Training

_TENSOR = "captions"  # JSON in UTF-8


def learn_teacher_captions(
    training: Training, work_dir: Path, progress: Progress, *, block_rows: int = BLOCK_ROWS
) -> None:
    """Let the teachers of `training`, together, caption its training images, and add these captions to its own.

    They are the captions that `Captioner` gives by default, re-ranked if every teacher can; `block_rows` are searched
    at once. One that is cut is not learned. Those in `work_dir` are not made again. Each process makes a share of them.
    """
    world, keys = training.world, training.splits.train
    written = dict(world.gather(list(_kept_captions(work_dir).items()) if world.is_first else []))
    if any(key not in written for key in keys):
        _caption_missing(training, written, work_dir, progress, block_rows)
    training.add_captions(written)


def _caption_missing(
    training: Training, written: dict[str, str], work_dir: Path, progress: Progress, block_rows: int
) -> None:
    """Add the captions that are missing to those `written`, and keep these in `work_dir` from time to time."""
    world, keys = training.world, training.splits.train
    captioner = Captioner.of(training.teachers.trained, device=str(training.device))
    finder = captioner.finder(captioner.fit_search(SearchConfig(max_length=training.length)))
    block_size = max(1, block_rows // finder.rows_per_image) * world.size
    missing = [key for key in keys if key not in written]
    began = saved_at = time.monotonic()
    for start in range(0, len(missing), block_size):
        block = missing[start : start + block_size]
        found = [
            (key, "" if caption.cut else caption.text)
            for key, caption in decode_rows(finder, training.store, world.own(block))
        ]
        written |= world.gather(found)
        done, now = start + len(block), time.monotonic()
        if world.is_first and (now - saved_at >= training.loop.checkpoint_every_s or done == len(missing)):
            _keep_captions(work_dir, written)
            saved_at = now
        progress("teachers' captions", len(written), len(keys), left_s=(now - began) / done * (len(missing) - done))


def _kept_captions(work_dir: Path) -> dict[str, str]:
    found = read_checkpoint(work_dir, TEACHER_CAPTIONS_NAME)
    if found is None:
        return {}
    try:
        written = parse_json(found.tensors[_TENSOR].numpy().tobytes().decode())
        return {str(key): str(caption) for key, caption in written.items()}
    except WRONG_VALUES as exc:
        raise TrainingError(f"{work_dir / TEACHER_CAPTIONS_NAME}: not what a training keeps; pass `restart`") from exc


def _keep_captions(work_dir: Path, written: Mapping[str, str]) -> None:
    text = bytearray(json.dumps(written).encode())
    tensors = {_TENSOR: torch.frombuffer(text, dtype=torch.uint8)}
    write_checkpoint(work_dir, Checkpoint({}, tensors), TEACHER_CAPTIONS_NAME)
