"""The drawings of an explanation: numbers as heat maps, the beam as boxes and lines at their places."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captionmill.pipeline.pages.page import colour
from captionmill.stages.decoding.beam_tree import BeamNode
from captionmill.stages.decoding.folded import Numbers

MAP_COLUMNS = 64

_SATURATION = 99.5  # percentile at which a heat map's colour is full: a few outliers must not make the rest pale
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _LABELS = 146, 54, 16, 36, 58  # pixels
_LONGEST_WORD = 17  # letters that fit into a box


@dataclass(frozen=True)
class HeatMap:
    """Numbers as an image, one pixel each."""

    url: str
    limit: float
    """A number of this size or more is opaque."""
    is_signed: bool
    """Whether there are numbers below zero."""
    is_clipped: bool
    """Whether there are numbers beyond the limit."""


@dataclass(frozen=True)
class Box:
    """A caption that was kept at one step, by its last word."""

    kinds: Sequence[str]
    """ "ended", "wins"."""
    x: float
    y: float
    title: str
    lines: Sequence[tuple[str, str]]
    """(kind, text), from the top."""


@dataclass(frozen=True)
class Edge:
    """A line from a box down to one of the next step."""

    kinds: Sequence[str]
    """ "carried", "wins"."""
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True)
class Tree:
    """The beam, a row for each step, the best caption of the step at the left; in pixels."""

    width: int
    height: int
    boxes: Sequence[Box]
    edges: Sequence[Edge]
    labels: Sequence[tuple[float, str]]
    """The height at which each step's name stands."""
    box_width: int = _BOX_WIDTH
    box_height: int = _BOX_HEIGHT


def draw_heat_map(values: Numbers, *, limit: float | None = None) -> HeatMap:
    """The numbers [D] as an image, `MAP_COLUMNS` in each row.

    The colour shows the sign, the opacity the size: 0 cannot be seen. Without a `limit`, the colour is full where all
    but a few numbers end.
    """
    if limit is None:
        limit = float(np.percentile(np.abs(values), _SATURATION)) or 1.0
    columns = min(MAP_COLUMNS, len(values))
    pixels = np.zeros((math.ceil(len(values) / columns) * columns, 4), dtype=np.uint8)
    for name, chosen in (("up", values > 0), ("down", values < 0)):
        pixels[: len(values)][chosen, :3] = list(bytes.fromhex(colour(name)[1:]))
    pixels[: len(values), 3] = np.rint(np.clip(np.abs(values) / limit, 0, 1) * 255)
    content = io.BytesIO()
    Image.fromarray(pixels.reshape(-1, columns, 4)).save(content, "PNG")
    return HeatMap(
        url="data:image/png;base64," + base64.b64encode(content.getvalue()).decode(),
        limit=limit,
        is_signed=bool((values < 0).any()),
        is_clipped=float(np.abs(values).max()) > limit,
    )


def draw_beam_tree(steps: Sequence[Sequence[BeamNode]]) -> Tree:
    """Where each caption of the beam stands, and what it came from; the winner is drawn last, above the others."""
    widest = max(len(kept) for kept in steps)
    nodes = [node for kept in steps for node in sorted(kept, key=lambda node: node.wins)]
    columns = {(node.step, node.place): column for kept in steps for column, node in enumerate(kept)}
    beginning = Box(
        ("wins",), _left(0), _top(0), "the beginning of every caption", [("word", "<start>"), ("small", "score 0")]
    )
    return Tree(
        width=_LABELS + widest * (_BOX_WIDTH + _GAP_X),
        height=(len(steps) + 1) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 2,
        boxes=[beginning, *(_box(node, columns[node.step, node.place]) for node in nodes)],
        edges=[_edge(node, columns) for node in nodes],
        labels=[(_top(step) + _BOX_HEIGHT / 2 + 4, f"step {step}") for step in range(1, len(steps) + 1)],
    )


def _left(column: int) -> float:
    return _LABELS + column * (_BOX_WIDTH + _GAP_X)


def _top(step: int) -> float:
    return 1 + step * (_BOX_HEIGHT + _GAP_Y)


def _edge(node: BeamNode, columns: Mapping[tuple[int, int], int]) -> Edge:
    """The line to `node`; `columns` are those of the nodes, by step and place."""
    parent = 0 if node.parent is None else columns[node.step - 1, node.parent]
    return Edge(
        kinds=[name for name, holds in (("carried", node.carried), ("wins", node.wins)) if holds],
        start=(_left(parent) + _BOX_WIDTH / 2, _top(node.step - 1) + _BOX_HEIGHT),
        end=(_left(columns[node.step, node.place]) + _BOX_WIDTH / 2, _top(node.step)),
    )


def _box(node: BeamNode, column: int) -> Box:
    word = node.word if len(node.word) <= _LONGEST_WORD else node.word[: _LONGEST_WORD - 1] + "\N{HORIZONTAL ELLIPSIS}"
    second = "kept as it is" if node.carried else f"ln p {node.log_probability:.3f}, sum {node.total:.2f}"
    return Box(
        kinds=[name for name, holds in (("ended", node.ended), ("wins", node.wins)) if holds],
        x=_left(column),
        y=_top(node.step),
        title=(
            f"step {node.step}, place {node.place + 1}: {node.word} ({node.index}), ln p {node.log_probability:.4f}, "
            f"sum {node.total:.4f}, {node.length} words, score {node.score:.4f}"
        ),
        lines=[("word", word), ("small", second), ("small", f"score {node.score:.4f}")],
    )
