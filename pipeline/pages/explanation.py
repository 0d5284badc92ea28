"""The page that explains one picture: self-contained HTML, every number the network's own."""

import html
from pathlib import Path, PurePosixPath
from string import Template

import numpy as np
from PIL import Image

from captionmill.pipeline.pages.drawings import DOWN, MAP_COLUMNS, UP, heat_map_url
from captionmill.pipeline.pages.explain_words import (
    PictureExplanation,
    show_number,
    tell_how_computed,
    tell_scaling,
    tell_start,
)
from captionmill.pipeline.pages.page import thumbnail_url
from captionmill.pipeline.pages.walks import beam_section, greedy_section, references_section
from captionmill.stages.decoding.explain import Numbers, Start

_TEMPLATE_PATH = Path(__file__).parent / "assets" / "explain.html"
_PHOTO_SIDE = 640  # pixels
_LARGEST = 10
_SATURATION = 99.5  # percentile at which a heat map's colour is full: a few outliers must not make the rest pale

_PARTS = {"hidden": "Hidden state h0", "cell": "Cell state c0", "image": "Image vector, beside every word"}


def render_page(explained: PictureExplanation) -> str:
    """The page as one string of HTML."""
    sections = [_numbers_section, _start_section, greedy_section, beam_section, references_section, _check_section]
    bodies = [body for section in sections if (body := section(explained))]
    numbered = [body.replace("<h2>", f"<h2><span>{number}</span>", 1) for number, body in enumerate(bodies, 1)]
    template = Template(_TEMPLATE_PATH.read_text(encoding="utf-8"))
    title = html.escape(f"{_file_name(explained)}: {explained.caption}")
    return template.substitute(title=title, up=UP, down=DOWN, body="\n".join([_head(explained), *numbered]))


def _head(explained: PictureExplanation) -> str:
    confidence = explained.explanation.caption.confidence
    name = html.escape(_file_name(explained))
    photo = ""
    if explained.picture:
        url = thumbnail_url(explained.picture.copy(), _PHOTO_SIDE)
        photo = (
            f'<figure class="photo"><img alt="the picture" src="{url}">'
            f"<figcaption>{name}, {explained.picture.width} &times; {explained.picture.height} pixels</figcaption>"
            "</figure>"
        )
    role = f"<p>{_sentence(explained.role)}</p>" if explained.role else ""
    named = "" if photo else f"{name}. "
    return (
        f'<div class="top{"" if photo else " alone"}">{photo}<div><h1>{html.escape(explained.caption)}</h1>'
        f"<p>This page shows how a picture became these words. The network is <b>{confidence:.0%}</b> sure of them: "
        f"that is the geometric mean of the probabilities of the words, {show_number(confidence)}. Computed like this: "
        f"{html.escape(tell_how_computed(explained))}.</p>{role}"
        f'<p class="facts">{named}Features: {html.escape(explained.origin)}.</p></div></div>'
    )


def _numbers_section(explained: PictureExplanation) -> str:
    values, spec = explained.explanation.features, explained.bundles[0].spec
    facts = (
        f"shape [{len(values)}], least {show_number(values.min())}, largest {show_number(values.max())}, "
        f"mean {show_number(values.mean())}, exactly zero {np.mean(values == 0):.1%}; "
        f"weights {html.escape(Path(spec.weights).name)}, SHA-256 {html.escape(spec.weights_sha256[:12])}"
    )
    return (
        f"<section><h2>The picture becomes {len(values):,} numbers</h2>"
        f"<p>A ResNet ({html.escape(spec.backbone)}), a network that has learned to tell pictures apart, looks at a "
        "small version of the picture. Each number says how strongly one pattern that it knows is there; a pattern has "
        "no name, only its index. From here on the decoder sees these numbers alone, never the picture.</p>"
        f'<p class="facts">{facts}</p><div class="maps">'
        f'<div class="card">{_heat(values, "the features of the picture")}{_map_note(len(values))}'
        f'{_all_numbers(values)}</div><div class="card beside">{_seen_figure(explained)}<div><h3>The largest</h3>'
        f"{_largest_table(explained)}</div></div></div></section>"
    )


def _seen_figure(explained: PictureExplanation) -> str:
    if explained.seen is None:
        return ""
    pixels = Image.fromarray(explained.seen)
    return (
        f'<figure class="seen"><img alt="what the network sees" src="{thumbnail_url(pixels.copy(), _PHOTO_SIDE)}">'
        f"<figcaption>What the network sees: {pixels.width} &times; {pixels.height} pixels "
        f"({html.escape(explained.bundles[0].spec.preprocess)})</figcaption></figure>"
    )


def _largest_table(explained: PictureExplanation) -> str:
    values, starts = explained.explanation.features, explained.explanation.starts
    names = ["scaled"] if len(starts) == 1 else [f"scaled, {html.escape(name)}" for name in explained.models]
    rows = "".join(
        f"<tr><td>{index}</td><td>{show_number(values[index])}</td>"
        + "".join(f"<td>{show_number(start.scaled[index])}</td>" for start in starts)
        + "</tr>"
        for index in np.argsort(-values, kind="stable")[:_LARGEST]
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="scroll"><table><tr><th>index</th><th>number</th>{head}</tr>{rows}</table></div>'


def _start_section(explained: PictureExplanation) -> str:
    blocks = []
    for start, config, model in zip(explained.explanation.starts, explained.decoders, explained.models, strict=True):
        title = f"<h3>Model {html.escape(model)}</h3>" if len(explained.models) > 1 else ""
        blocks.append(
            f"{title}<p>{_sentence(tell_scaling(config))} {_sentence(tell_start(config))} Orange is above zero, blue "
            f'below.</p><div class="maps">{_scaled_card(start)}{_state_card(start, config.layers)}</div>'
        )
    return f"<section><h2>The numbers become the decoder's first state</h2>{''.join(blocks)}</section>"


def _scaled_card(start: Start) -> str:
    scaled = start.scaled
    return (
        f'<div class="card"><h3>The numbers, scaled</h3>{_heat(scaled, "the scaled features")}<p class="facts">shape '
        f"[{len(scaled)}], mean {show_number(scaled.mean())}, root mean square "
        f"{show_number(np.sqrt(np.mean(scaled**2)))}; furthest from zero, index and number: "
        f"{_furthest(scaled)}</p>{_all_numbers(scaled)}</div>"
    )


def _state_card(start: Start, layers: int) -> str:
    parts = []
    for part in start.parts:
        values = part.values
        layer = f", layer {part.layer} of {layers}" if layers > 1 and part.name != "image" else ""
        parts.append(
            f"<h3>{_PARTS[part.name]}{layer}</h3>"
            f"{_heat(values, _PARTS[part.name], limit=max(1.0, float(np.abs(values).max())))}"
            f'<p class="facts">shape [{len(values)}], least {show_number(values.min())}, largest '
            f"{show_number(values.max())}, mean distance from zero {show_number(np.abs(values).mean())}</p>"
            f"{_all_numbers(values)}"
        )
    return f'<div class="card">{"".join(parts)}</div>'


def _furthest(scaled: Numbers) -> str:
    indices = np.argsort(-np.abs(scaled), kind="stable")[:5]
    return ", ".join(f"{index}: {scaled[index]:+.3f}" for index in indices)


def _check_section(explained: PictureExplanation) -> str:
    folders = ", ".join(f"Path({name!r})" for name in explained.models)
    code = f"""\
from pathlib import Path, PurePosixPath
import torch
from captionmill.data.features.store import FeatureStore
from captionmill.stages.decoding.captioner import Captioner

captioner = Captioner.load([{folders}], device="cpu")
row = FeatureStore.open(Path("features.h5"))[{explained.key or _file_name(explained)!r}]  # or the numbers above
with torch.inference_mode():
    state = captioner.decoder.start(torch.from_numpy(row)[None].float())
    for word in {[step.fed for step in explained.explanation.greedy.steps]}:  # fed in
        logits, state = captioner.decoder.step(torch.tensor([word]), state)
        print(logits[0].topk(10), logits[0].softmax(0).topk(10).values)
"""
    versions = ", ".join(f"{name} {version}" for name, version in explained.bundles[0].versions.items())
    made = f'<p class="facts">The model was made with {html.escape(versions)}.</p>' if versions else ""
    return (
        "<section><h2>Check it</h2><p>Nothing here is computed for show: the numbers are what "
        "<code>Decoder.start</code> and <code>Decoder.step</code> return. These lines give the greedy tables "
        "again; the last digits may differ on "
        f"another machine.</p><pre>{html.escape(code)}</pre>{made}</section>"
    )


def _heat(values: Numbers, what: str, *, limit: float | None = None) -> str:
    """A heat map with its scale; without a `limit` the colour is full where all but a few numbers end."""
    if limit is None:
        limit = float(np.percentile(np.abs(values), _SATURATION)) or 1.0
    is_signed = bool((values < 0).any())
    low = f"&minus;{limit:.2f}" if is_signed else "0"
    beyond = " or more" if float(np.abs(values).max()) > limit else ""
    return (
        f'<img class="heat" alt="{html.escape(what)}" src="{heat_map_url(values, limit)}">'
        f'<div class="scale">{low}<i class="{"both" if is_signed else ""}"></i>{limit:.2f}{beyond}</div>'
    )


def _map_note(count: int) -> str:
    if count <= MAP_COLUMNS:
        return ""
    return (
        f'<p class="facts">{MAP_COLUMNS} numbers a row, from the top left: row r, column c, both from 0, is index '
        f"{MAP_COLUMNS} r + c.</p>"
    )


def _all_numbers(values: Numbers) -> str:
    lines = "\n".join(
        f"{start:5}  " + " ".join(f"{value:9.5f}" for value in values[start : start + 8])
        for start in range(0, len(values), 8)
    )
    return f"<details><summary>All {len(values):,} numbers</summary><pre>{lines}</pre></details>"


def _file_name(explained: PictureExplanation) -> str:
    """Without the folders, which are nobody's business on a page that is passed on."""
    return PurePosixPath(explained.name).name


def _sentence(text: str) -> str:
    """`text` escaped, with a capital and a full stop."""
    return html.escape(text[:1].upper() + text[1:]) + ("" if text.endswith(".") else ".")
