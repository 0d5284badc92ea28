"""The drawings of an explanation: numbers as heat maps, the beam as an SVG tree."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image

from captionmill.stages.decoding.beam_tree import BeamNode, BeamTree
from captionmill.stages.decoding.explain import Numbers

UP, DOWN = "#d9772e", "#3b82c4"  # above and below zero; both show on a white and on a black page
MAP_COLUMNS = 64

_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _LABELS = 146, 54, 16, 36, 58  # pixels
_LONGEST_WORD = 17  # letters that fit into a box


def heat_map_url(values: Numbers, limit: float) -> str:
    """A PNG of the numbers [D], `MAP_COLUMNS` a row, a pixel each, as a data URL.

    The colour tells the sign, the opacity the size: a number of `limit` or more is opaque, 0 is not there.
    """
    columns = min(MAP_COLUMNS, len(values))
    pixels = np.zeros((math.ceil(len(values) / columns) * columns, 4), dtype=np.uint8)
    for colour, chosen in ((UP, values > 0), (DOWN, values < 0)):
        pixels[: len(values)][chosen, :3] = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    pixels[: len(values), 3] = np.rint(np.clip(np.abs(values) / limit, 0, 1) * 255)
    content = io.BytesIO()
    Image.fromarray(pixels.reshape(-1, columns, 4)).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def draw_beam_tree(tree: BeamTree) -> str:
    """The beam as an SVG: a row for each step, the best caption of the step at the left."""
    widest = max(len(kept) for kept in tree.steps)
    width = _LABELS + widest * (_BOX_WIDTH + _GAP_X)
    height = (len(tree.steps) + 1) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 2
    edges, boxes = [], []
    for kept in tree.steps:
        boxes.append(
            f'<text class="small" x="0" y="{_top(kept[0].step) + _BOX_HEIGHT / 2 + 4}">step {kept[0].step}</text>'
        )
        for node in sorted(kept, key=lambda node: node.wins):  # the winner's lines on top
            edges.append(_edge(node))
            boxes.append(_box(node))
    start = _group("wins", _LABELS, 1, "the beginning of every caption", [("word", "<start>"), ("small", "score 0")])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="the beam search as a tree" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"{''.join(edges)}{start}{''.join(boxes)}</svg>"
    )


def _left(place: int) -> float:
    return _LABELS + place * (_BOX_WIDTH + _GAP_X)


def _top(step: int) -> float:
    return 1 + step * (_BOX_HEIGHT + _GAP_Y)


def _edge(node: BeamNode) -> str:
    from_x, from_y = _left(node.parent or 0) + _BOX_WIDTH / 2, _top(node.step - 1) + _BOX_HEIGHT
    to_x, to_y = _left(node.place) + _BOX_WIDTH / 2, _top(node.step)
    middle = (from_y + to_y) / 2
    kind = " ".join(name for name, holds in (("carried", node.carried), ("wins", node.wins)) if holds)
    return f'<path class="{kind}" d="M{from_x} {from_y}C{from_x} {middle} {to_x} {middle} {to_x} {to_y}"/>'


def _box(node: BeamNode) -> str:
    kind = " ".join(name for name, holds in (("ended", node.ended), ("wins", node.wins)) if holds)
    title = (
        f"step {node.step}, place {node.place + 1}: {node.word} ({node.index}), ln p {node.log_probability:.4f}, "
        f"sum {node.total:.4f}, {node.length} words, score {node.score:.4f}"
    )
    word = node.word if len(node.word) <= _LONGEST_WORD else node.word[: _LONGEST_WORD - 1] + "\N{HORIZONTAL ELLIPSIS}"
    second = "kept as it is" if node.carried else f"ln p {node.log_probability:.3f}, sum {node.total:.2f}"
    lines = [("word", word), ("small", second), ("small", f"score {node.score:.4f}")]
    return _group(kind, _left(node.place), _top(node.step), title, lines)


def _group(kind: str, x: float, y: float, title: str, lines: list[tuple[str, str]]) -> str:
    texts = "".join(
        f'<text class="{name}" x="{x + 8}" y="{y + 18 + 15 * number}">{html.escape(line)}</text>'
        for number, (name, line) in enumerate(lines)
    )
    dot = f'<circle cx="{x + _BOX_WIDTH - 11}" cy="{y + 13}" r="4"/>' if "ended" in kind else ""
    return (
        f'<g class="{kind}"><title>{html.escape(title)}</title>'
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"/>{texts}{dot}</g>'
    )
