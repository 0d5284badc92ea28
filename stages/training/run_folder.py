"""The folder that a training works in, and the files for people that it writes there after each epoch.

These are settings, history, curves, samples and TensorBoard events. Training never reads them again, except the samples
of earlier epochs when it is resumed. Every file is replaced atomically, except the events, which are only appended to.
The folder is claimed by one training at a time, and published when the training has ended.
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captionmill.data.csv_tables import Cell, read_cells, write_table
from captionmill.data.errors import InputError, TrainingError
from captionmill.data.files import replace_atomically, write_text
from captionmill.data.foreign import WRONG_VALUES, parse_json
from captionmill.data.locks import hold_lock
from captionmill.data.models.bundle import (
    BUNDLE_NAME,
    is_weights_name,
    model_exists,
    read_bundle,
    require_no_model,
    write_model,
)
from captionmill.data.models.card import may_write_card, put_card
from captionmill.data.optional import install_command
from captionmill.data.regular import make_own_folder, read_text
from captionmill.stages import charts
from captionmill.stages.machine import versions
from captionmill.stages.training.checkpoint import CHECKPOINT_NAME, MATCHER_NAME, TEACHER_CAPTIONS_NAME

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG_NAME = "config.json"
HISTORY_NAME = "history.csv"
CURVES_NAME = "curves.png"
SAMPLES_NAME = "samples.csv"
EVENTS_NAME = "events"
UNMATCHED_NAME = "unmatched.csv"
RUN_NAMES = (CONFIG_NAME, HISTORY_NAME, CURVES_NAME, SAMPLES_NAME, EVENTS_NAME)
"""All names that a run folder writes; the last is a folder."""

SELF_CRITICAL = "self-critical"
"""The phase of history rows whose `loss` is a reward, where higher is better; in any other phase it is a loss."""

_SCALARS = {
    "val_loss": "loss/val",
    "val_cider": "cider_d/val",
    "learning_rate": "learning_rate",
    "captions_per_s": "speed/captions_per_s",
}

_SECONDS_BETWEEN_CURVES = 10.0
_LOCK_NAME = ".lock"

_logger = logging.getLogger(__name__)


class _SampleRow(NamedTuple):
    """One row of samples.csv."""

    key: str
    epoch: int
    caption: str
    references: str
    """Joined by " | "."""


class RunFolder:
    """The files of one training in `folder`; opened again when the training is resumed, it continues them."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError if `folder` holds a samples.csv that training did not write."""
        self._folder = folder
        self._samples = _read_samples(folder / SAMPLES_NAME)
        self._events: SummaryWriter | None = None
        self._has_tensorboard = True
        self._undrawn: Sequence[Mapping[str, object]] = ()
        self._drawn_at = -math.inf

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:  # such as Ctrl-C: skip drawing, which takes a moment and could hide the error
            self._undrawn = ()
        self.close()

    def write_config(
        self, settings: Mapping[str, object], *, data: Mapping[str, object], counts: Mapping[str, int]
    ) -> None:
        """Write config.json: the training's settings, the paths of its `data`, its `counts`, and the versions used."""
        values = {"settings": settings, "data": data, "counts": counts, "versions": versions()}
        text = json.dumps(values, indent=1, ensure_ascii=False, default=_path_to_json)
        write_text(self._folder / CONFIG_NAME, text + "\n")

    def write_history(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Replace history.csv and curves.png, from all epochs so far, one row per epoch, in order.

        Curves take a moment to draw: with quick epochs they are drawn once in some seconds, and at the end by `close`.

        The table has the columns of the rows; `charts.draw_curves` describes what the curves need.
        """
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = ([row.get(name) for name in columns] for row in rows)
        # significant digits, since a small learning rate would be rounded to 0 in fixed decimals
        write_table(self._folder / HISTORY_NAME, columns, cells, float_format=".6g")
        self._undrawn = list(rows)
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_CURVES:
            self._draw()

    def add_epoch_events(self, row: Mapping[str, object]) -> None:
        """Append the epoch in `row` of the history to the TensorBoard events, if tensorboard is installed.

        After an interruption, TensorBoard drops this epoch and later ones, as they are trained again.
        """
        step = charts.number_in(row, "epoch")
        if self._events is None and self._has_tensorboard:
            self._events = self._open_events(int(step))
        if self._events is None:
            return
        scalars = {tag: value for name, tag in _SCALARS.items() if not math.isnan(value := charts.number_in(row, name))}
        scalars["reward/train" if row.get("phase") == SELF_CRITICAL else "loss/train"] = charts.number_in(row, "loss")
        for tag, value in scalars.items():
            self._events.add_scalar(tag, value, int(step))
        self._events.flush()

    def write_samples(self, epoch: int, samples: Sequence[tuple[str, str, Sequence[str]]]) -> None:
        """Add the (key, caption, references) of `epoch` to samples.csv, each image's captions together, oldest first.

        Rows of this epoch and of later ones, from before a training was resumed, are replaced.
        """
        place = {key: number for number, (key, _, _) in enumerate(samples)}
        earlier = [sample for sample in self._samples if sample.epoch < epoch]
        added = [_SampleRow(key, epoch, caption, " | ".join(references)) for key, caption, references in samples]
        self._samples = sorted(
            earlier + added, key=lambda sample: (place.get(sample.key, len(place)), sample.key, sample.epoch)
        )
        write_table(self._folder / SAMPLES_NAME, _SampleRow._fields, self._samples)

    def close(self) -> None:
        """Finish the curves and the event file; must be called before the folder is copied or removed."""
        if self._undrawn:
            self._draw()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _draw(self) -> None:
        charts.draw_curves(self._folder / CURVES_NAME, self._undrawn, rewarded_phase=SELF_CRITICAL)
        self._undrawn, self._drawn_at = (), time.monotonic()

    def _open_events(self, first_step: int) -> "SummaryWriter | None":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._has_tensorboard = False
            _logger.info("no TensorBoard events: %s", install_command("tensorboard"))
            return None
        return SummaryWriter(str(self._folder / EVENTS_NAME), purge_step=first_step)


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Create `folder`, and lock it against every other training while the block lasts.

    Raises InputError if it is a file, TrainingError if another process has claimed it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: needed for the training, but is a file; move it away")
    make_own_folder(folder)
    error = TrainingError(f"{folder}: another process is running this training; wait for it to end")
    with hold_lock(folder / _LOCK_NAME, error):
        yield


def begin_folder(folder: Path, unmatched: Mapping[str, Sequence[str]]) -> None:
    """Empty a claimed folder for a new training, as `empty_folder` does; list the images it leaves out by reason."""
    empty_folder(folder)
    rows = [(key, reason) for reason, keys in unmatched.items() for key in keys]
    write_table(folder / UNMATCHED_NAME, ("key", "reason"), rows)


def empty_folder(folder: Path) -> None:
    """Remove the files of an earlier training from a claimed folder; InputError if it holds other files."""
    own = (BUNDLE_NAME, CHECKPOINT_NAME, MATCHER_NAME, TEACHER_CAPTIONS_NAME, UNMATCHED_NAME, *RUN_NAMES)
    paths = [path for path in folder.iterdir() if not path.name.startswith(_LOCK_NAME)]
    for path in paths:
        if path.name not in own and not is_weights_name(path.name) and not path.name.endswith(".partial"):
            raise InputError(f"{folder}: needed for the training, but holds other files ({path.name}); move it away")
    for path in paths:
        _remove_any(path)


def publish(folder: Path, output: Path, notes: Sequence[str]) -> None:
    """Put the finished training in `output` and remove `folder`; the bundle replaces an older one in one rename.

    `notes` about the whole training go in front of those about the epoch that was kept.

    The bundle comes last. If interrupted before, it leaves a training that can be resumed; if interrupted after it,
    what is left of `folder` is removed by the next training (`remove_published`).
    """
    copy_run(folder, output)
    with replace_atomically(output / UNMATCHED_NAME) as partial_path:
        shutil.copyfile(folder / UNMATCHED_NAME, partial_path)
    model = read_bundle(folder)
    model = replace(model, notes=(*notes, *model.notes))
    if may_write_card(output):
        put_card(output, model)
    write_model(output, model)
    (folder / CHECKPOINT_NAME).unlink()
    shutil.rmtree(folder, ignore_errors=True)  # Windows does not remove a locked file


def require_place(output: Path, *, overwrite: bool) -> Path:
    """The folder in which a training of the model `output` works; InputError unless one may be written there."""
    folder = output.resolve().with_name(f"{output.resolve().name}.training")
    if not overwrite:
        remove_published(folder, output)
    require_no_model(output, overwrite=overwrite)
    return folder


def remove_published(folder: Path, output: Path) -> None:
    """Remove the `folder` of a training whose model is in `output`, if a kill kept `publish` from it.

    One that can be resumed stays, unless it is the training that made this model; so does a folder with other files.
    """
    if not model_exists(output) or not folder.is_dir():
        return
    with contextlib.suppress(TrainingError, InputError), claim_folder(folder):
        if not (folder / CHECKPOINT_NAME).exists() or _is_same_model(folder, output):
            empty_folder(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _is_same_model(folder: Path, other: Path) -> bool:
    """Whether two bundles differ in their notes at most."""
    try:
        first, second = (parse_json(read_text(path / BUNDLE_NAME)) | {"notes": []} for path in (folder, other))
    except (OSError, *WRONG_VALUES):
        return False
    return bool(first == second)


def copy_run(folder: Path, output: Path) -> None:
    """Copy the files of the training in `folder` to `output`; files of an older training there are removed."""
    for name in RUN_NAMES:
        source, target = folder / name, output / name
        if target.is_dir():
            _remove_any(target)
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            with replace_atomically(target) as partial_path:
                shutil.copyfile(source, partial_path)
        else:
            target.unlink(missing_ok=True)


def _remove_any(path: Path) -> None:
    """Remove a file, a folder, or a link to either."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _read_samples(path: Path) -> list[_SampleRow]:
    """The rows that `write_samples` wrote; an empty list if the file does not exist."""
    if not path.exists():
        return []
    try:
        rows = read_cells(path, _SampleRow._fields)
        return [_SampleRow(key, int(epoch), caption, references) for key, epoch, caption, references in rows]
    except ValueError as exc:
        raise InputError(f"{path}: not a table of sample captions as training writes it; move it away") from exc


def _path_to_json(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written to {CONFIG_NAME}")
