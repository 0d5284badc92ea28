"""Charts of a training, drawn with matplotlib, which is imported only when one is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captionmill.data.files import replace_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_TRAIN, _VAL, _REWARD = "#1f5fa8", "#d1602a", "#6a4c9c"


def draw_curves(path: Path, rows: Sequence[Mapping[str, object]], *, rewarded_phase: str) -> None:
    """Draw loss and reward above, validation CIDEr-D below, over the epochs, as a PNG of 960 x 720 pixels.

    Each row has `epoch` (from 1), `loss` and `val_cider`; `phase`, `val_loss` and `best` are shown where a row has
    them. The `loss` of a row of the phase `rewarded_phase` is a reward.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6))
    loss_axes, cider_axes = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.12, right=0.89, bottom=0.08, top=0.94, hspace=0.22)
    rewarded = [row for row in rows if row.get("phase") == rewarded_phase]
    curves = _plot(loss_axes, "loss", [row for row in rows if row not in rewarded], _TRAIN, "training loss")
    if any(not math.isnan(number_in(row, "val_loss")) for row in rows):
        curves += _plot(loss_axes, "val_loss", rows, _VAL, "validation loss")
    if rewarded:  # on its own axis, since it rises while a loss falls
        reward_axes = loss_axes.twinx()
        curves += _plot(reward_axes, "loss", rewarded, _REWARD, "self-critical: reward (right)")
        reward_axes.tick_params(axis="y", labelcolor=_REWARD)
        reward_axes.spines["top"].set_visible(False)
    _put_legend(loss_axes, curves)
    loss_axes.set_ylabel("cross entropy per word (nats)")

    curves = _plot(cider_axes, "val_cider", rows, _VAL, "validation CIDEr-D")
    if best := [row for row in rows if row.get("best")][-1:]:
        epoch, cider = number_in(best[0], "epoch"), number_in(best[0], "val_cider")
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
            axes.axvline(number_in(rewarded[0], "epoch") - 0.5, color=_REWARD, linestyle="--", linewidth=1)
    with replace_atomically(path) as partial_path:
        figure.savefig(partial_path, format="png", dpi=120)  # by Agg: a Figure without pyplot needs no display


def number_in(row: Mapping[str, object], name: str) -> float:
    """The number in the row; NaN, which is not drawn, if there is none."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _plot(axes: "Axes", name: str, rows: Sequence[Mapping[str, object]], color: str, label: str) -> "list[Line2D]":
    """Plot a point per epoch, joined by lines; without `rows` plot nothing and return no line for the legend."""
    if not rows:
        return []
    epochs = [number_in(row, "epoch") for row in rows]
    return axes.plot(epochs, [number_in(row, name) for row in rows], "o-", color=color, markersize=3.5, label=label)


def _put_legend(axes: "Axes", curves: "list[Line2D]") -> None:
    """Put the legend above the axes, where no curve crosses it."""
    axes.legend(handles=curves, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)
