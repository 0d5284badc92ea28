"""What a training run leaves for people, epoch by epoch: settings, history, curves, samples, TensorBoard events.

Nothing here is read again by training, except the samples of earlier epochs when a run is resumed. Every file but the
events, which are only appended to, is replaced whole.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from captionmill.data.csv_tables import write_table
from captionmill.data.errors import InputError
from captionmill.data.files import replace_atomically, write_text
from captionmill.stages.machine import versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from torch.utils.tensorboard import SummaryWriter

CONFIG_NAME = "config.json"
HISTORY_NAME = "history.csv"
CURVES_NAME = "curves.png"
SAMPLES_NAME = "samples.csv"
EVENTS_NAME = "events"
RUN_NAMES = (CONFIG_NAME, HISTORY_NAME, CURVES_NAME, SAMPLES_NAME, EVENTS_NAME)
"""All that a run folder writes; the last is a folder."""

SELF_CRITICAL = "self-critical"
"""The phase of a history's row whose `loss` is a reward, the higher the better; any other phase's is a loss."""

_TRAIN, _VAL, _REWARD = "#1f5fa8", "#d1602a", "#6a4c9c"
_SCALARS = {
    "val_loss": "loss/val",
    "val_cider": "cider_d/val",
    "learning_rate": "learning_rate",
    "captions_per_s": "speed/captions_per_s",
}

_SECONDS_BETWEEN_CURVES = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """One row of samples.csv."""

    key: str
    epoch: int
    caption: str
    references: str
    """Joined by " | "."""


class RunFolder:
    """The files of one training run in `folder`; made anew for a run that is resumed, it goes on with what is there."""

    def __init__(self, folder: Path) -> None:
        """InputError if `folder` holds a samples.csv that is not ours."""
        self._folder = folder
        self._samples = _read_samples(folder / SAMPLES_NAME)
        self._events: SummaryWriter | None = None
        self._has_tensorboard = True
        self._undrawn: Sequence[Mapping[str, object]] = ()
        self._drawn_at = -math.inf

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:  # such as Ctrl-C: nothing that takes a moment, and nothing that could hide it
            self._undrawn = ()
        self.close()

    def write_config(
        self, settings: Mapping[str, object], *, data: Mapping[str, object], counts: Mapping[str, int]
    ) -> None:
        """Write config.json: the training's settings, the paths of its `data`, its `counts`, and the versions here."""
        values = {"settings": settings, "data": data, "counts": counts, "versions": versions()}
        text = json.dumps(values, indent=1, ensure_ascii=False, default=_path_to_json)
        write_text(self._folder / CONFIG_NAME, text + "\n")

    def write_history(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write history.csv and curves.png anew from all epochs so far, a row an epoch, in order.

        The curves take a moment: of epochs that last less than some seconds not each is drawn at once, but `close`
        draws the last.

        The table has the columns that the rows have. The curves need of each row `epoch` (from 1), `loss` and
        `val_cider`, and show `phase`, `val_loss` and `best` where there are such.
        """
        frame = pd.DataFrame([{name: _shorten(value) for name, value in row.items()} for row in rows])
        write_table(self._folder / HISTORY_NAME, frame)
        self._undrawn = list(rows)
        if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_CURVES:
            self._draw()

    def add_epoch_events(self, row: Mapping[str, object]) -> None:
        """Append the epoch that `row` of the history describes to the TensorBoard events, if tensorboard is installed.

        TensorBoard forgets this epoch and later ones of a run that was killed, as they are made again.
        """
        step = _number(row, "epoch")
        if self._events is None and self._has_tensorboard:
            self._events = self._open_events(int(step))
        if self._events is None:
            return
        scalars = {tag: value for name, tag in _SCALARS.items() if not math.isnan(value := _number(row, name))}
        scalars["reward/train" if row.get("phase") == SELF_CRITICAL else "loss/train"] = _number(row, "loss")
        for tag, value in scalars.items():
            self._events.add_scalar(tag, value, int(step))
        self._events.flush()

    def write_samples(self, epoch: int, samples: Sequence[tuple[str, str, Sequence[str]]]) -> None:
        """Add the (key, caption, references) of `epoch` to samples.csv, each image's captions together, oldest first.

        Rows of this epoch and of later ones, from before a run was resumed, are replaced.
        """
        place = {key: number for number, (key, _, _) in enumerate(samples)}
        earlier = [sample for sample in self._samples if sample.epoch < epoch]
        added = [_Sample(key, epoch, caption, " | ".join(references)) for key, caption, references in samples]
        self._samples = sorted(
            earlier + added, key=lambda sample: (place.get(sample.key, len(place)), sample.key, sample.epoch)
        )
        write_table(self._folder / SAMPLES_NAME, pd.DataFrame([asdict(sample) for sample in self._samples]))

    def close(self) -> None:
        """Finish the curves and the event file; to be called before the folder is copied or removed."""
        if self._undrawn:
            self._draw()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _draw(self) -> None:
        _write_curves(self._folder / CURVES_NAME, self._undrawn)
        self._undrawn, self._drawn_at = (), time.monotonic()

    def _open_events(self, first_step: int) -> "SummaryWriter | None":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._has_tensorboard = False
            _log.info("no TensorBoard events: pip install 'captionmill[tensorboard]'")
            return None
        return SummaryWriter(str(self._folder / EVENTS_NAME), purge_step=first_step)


def copy_run(folder: Path, output: Path) -> None:
    """Copy the files of the run in `folder` to `output`; those of an older run there that have no successor go."""
    for name in RUN_NAMES:
        source, target = folder / name, output / name
        if target.is_dir():
            shutil.rmtree(target)
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            with replace_atomically(target) as partial_path:
                shutil.copyfile(source, partial_path)
        else:
            target.unlink(missing_ok=True)


def _read_samples(path: Path) -> list[_Sample]:
    """The rows that `write_samples` wrote; none if there is no such file."""
    if not path.exists():
        return []
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)[[field.name for field in fields(_Sample)]]
        return [
            _Sample(key, int(epoch), caption, references)
            for key, epoch, caption, references in frame.to_numpy().tolist()
        ]
    except (ValueError, KeyError) as exc:
        raise InputError(f"{path}: not a table of sample captions as training writes it; move it away") from exc


def _write_curves(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Draw loss and reward above, validation CIDEr-D below, over the epochs, as a PNG of 960 x 720 pixels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6))
    loss_axes, cider_axes = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.12, right=0.89, bottom=0.08, top=0.94, hspace=0.22)
    rewarded = [row for row in rows if row.get("phase") == SELF_CRITICAL]
    curves = _plot(loss_axes, "loss", [row for row in rows if row not in rewarded], _TRAIN, "training loss")
    if any(not math.isnan(_number(row, "val_loss")) for row in rows):
        curves += _plot(loss_axes, "val_loss", rows, _VAL, "validation loss")
    if rewarded:  # on an axis of its own, since it rises where a loss falls
        reward_axes = loss_axes.twinx()
        curves += _plot(reward_axes, "loss", rewarded, _REWARD, "self-critical: reward (right)")
        reward_axes.tick_params(axis="y", labelcolor=_REWARD)
        reward_axes.spines["top"].set_visible(False)
    _put_legend(loss_axes, curves)
    loss_axes.set_ylabel("cross entropy a word (nats)")

    curves = _plot(cider_axes, "val_cider", rows, _VAL, "validation CIDEr-D")
    if best := [row for row in rows if row.get("best")][-1:]:
        epoch, cider = _number(best[0], "epoch"), _number(best[0], "val_cider")
        label = f"best: {cider:.3f}, epoch {epoch:.0f}"
        curves += cider_axes.plot([epoch], [cider], "*", color=_VAL, markersize=14, label=label)
    _put_legend(cider_axes, curves)
    cider_axes.set_ylabel("CIDEr-D")
    cider_axes.set_xlabel("epoch")
    cider_axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (loss_axes, cider_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if rewarded:
            axes.axvline(_number(rewarded[0], "epoch") - 0.5, color=_REWARD, linestyle="--", linewidth=1)
    with replace_atomically(path) as partial_path:
        figure.savefig(partial_path, format="png", dpi=120)  # by Agg: a Figure of its own needs no display


def _plot(axes: "Axes", name: str, rows: Sequence[Mapping[str, object]], color: str, label: str) -> "list[Line2D]":
    """A point an epoch, joined; nothing, for the legend too, where there are no `rows`."""
    if not rows:
        return []
    epochs = [_number(row, "epoch") for row in rows]
    return axes.plot(epochs, [_number(row, name) for row in rows], "o-", color=color, markersize=3.5, label=label)


def _put_legend(axes: "Axes", curves: "list[Line2D]") -> None:
    """Above the axes, where no curve can run through it."""
    axes.legend(handles=curves, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)


def _number(row: Mapping[str, object], name: str) -> float:
    """The number in the row; NaN, which is not drawn, if there is none."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _shorten(value: object) -> object:
    """Six digits of a float, whatever its size: a learning rate has more zeros than a table has decimals."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _path_to_json(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written to {CONFIG_NAME}")
