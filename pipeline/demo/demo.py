"""The demo: drawn scenes, a pipeline file for them, and a gallery of captions of held-out images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.files import write_text
from captionmill.data.foreign import parse_json
from captionmill.data.images.find import find_images
from captionmill.data.progress import Progress, no_progress
from captionmill.data.regular import read_text
from captionmill.data.tables.formats import read_captions
from captionmill.pipeline.demo.scene_captions import Scene, describes
from captionmill.pipeline.demo.scenes import draw_samples
from captionmill.pipeline.pages.gallery import Verdict, write_gallery
from captionmill.pipeline.plan.graph import TaskOutcome
from captionmill.pipeline.plan.report import report_path_for
from captionmill.pipeline.plan.run import RunEvents, run_pipeline
from captionmill.stages.training.state import EpochResult

PICTURES_DIR, HELD_OUT_DIR = "pictures", "held_out"
PLAN_NAME, PAGE_NAME, CAPTIONS_NAME = "pipeline.toml", "page.html", "captions.csv"
PLAN = f"""\
# Made by `captionmill demo`; run it with `captionmill run pipeline.toml`. Paths start at this file's folder.

[extract]
images = "{PICTURES_DIR}"
output = "features.h5"
backbone = "scenes-resnet14"  # the demo's small network; leave this line out for your own images: resnet50
preprocess = "squash"
image_size = 128

[train]
captions = "references.csv"
output = "model"
min_count = 1
feature_scaling = "standardize"
embed_dim = 128
hidden_dim = 256
tie_weights = false
dropout = 0.2
feature_dropout = 0.1
label_smoothing = 0
batch_size = 32
learning_rate = 2e-3
max_epochs = {{epochs}}
patience = {{epochs}}  # never stops early: the learning rate falls until the last epoch
rerank = "both"  # re-ranked captions choose the epoch; leave this line out to be faster

[evaluate]
output = "scores.json"

[caption]
images = "{HELD_OUT_DIR}"
output = "{CAPTIONS_NAME}"
"""
_SEED = 20261122


@dataclass(frozen=True)
class DemoSummary:
    """The files and results of the demo."""

    folder: Path
    page_path: Path
    report_path: Path | None
    """None if it could not be written."""
    captions_path: Path
    outcomes: tuple[TaskOutcome, ...]
    right_count: int
    """Held-out captions with every object, colour, size and the background right."""
    held_out_count: int
    duration_s: float


def _ignore(*_: object) -> None:
    """Whoever listens to nothing."""


def run_demo(
    folder: Path,
    *,
    image_count: int = 2000,
    held_out_count: int = 200,
    epochs: int = 10,
    on_stage: Callable[[str, str], None] = _ignore,
    on_epoch: Callable[[EpochResult], None] = _ignore,
    progress: Progress = no_progress,
) -> DemoSummary:
    """Draw images into `folder`, extract, train for `epochs`, evaluate, caption the held-out ones, write their gallery.

    The gallery marks each caption as right or wrong, the wrong ones first. The pipeline also writes its report.

    Raises InputError if `folder` holds files that a demo did not make.
    """
    started = time.monotonic()
    plan_path = folder / PLAN_NAME
    if folder.exists() and any(folder.iterdir()) and not _is_demo(plan_path):
        raise InputError(f"{folder}: holds other files; choose an empty or a new folder")
    write_text(plan_path, PLAN.format(epochs=epochs))
    draw_samples(folder / PICTURES_DIR, image_count, seed=_SEED, captions_path=folder / "references.csv")
    scenes = draw_samples(folder / HELD_OUT_DIR, held_out_count, seed=_SEED + 1, name="new_scene")
    written: list[Path] = []
    events = RunEvents(on_stage=on_stage, on_epoch=on_epoch, on_report=written.append)
    outcomes = run_pipeline(plan_path, events=events, progress=progress)
    is_as_before = not any(outcome.summary for outcome in outcomes)
    rows = [row for row in read_captions(folder / CAPTIONS_NAME) if row.path in scenes]
    verdicts = {
        row.path: Verdict(describes(row.caption, scenes[row.path]), _describe_scene(scenes[row.path])) for row in rows
    }
    right_count = sum(verdict.is_right for verdict in verdicts.values())
    duration_s = time.monotonic() - started
    scores = parse_json(read_text(folder / "scores.json"))
    page_path = folder / PAGE_NAME
    write_gallery(
        page_path,
        "Captions of drawn scenes that captionmill has never seen",
        find_images(folder / HELD_OUT_DIR),
        rows,
        table=folder / CAPTIONS_NAME,
        verdicts=verdicts,
        figures=[(f"{scores['scores']['cider_d']:.2f}", f"CIDEr-D on the {scores['images']} images of the test split")],
        progress=progress,
    )
    return DemoSummary(
        folder=folder,
        page_path=page_path,
        report_path=report_path_for(plan_path) if written or is_as_before else None,
        captions_path=folder / CAPTIONS_NAME,
        outcomes=tuple(outcomes),
        right_count=right_count,
        held_out_count=len(rows),
        duration_s=duration_s,
    )


def _is_demo(plan_path: Path) -> bool:
    """Whether a demo wrote this plan, finished or not: only then may the demo write to its folder."""
    return plan_path.exists() and plan_path.read_bytes().startswith(PLAN.splitlines()[0].encode())


def _describe_scene(scene: Scene) -> str:
    objects = " and ".join(f"{drawn.size} {drawn.colour} {drawn.shape}" for drawn in scene.objects)
    return f"{objects}, {scene.background}"
