"""The page that explains one picture: self-contained HTML, every number the network's own."""

import html
from collections.abc import Iterable
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from captionmill.data.vocabulary import END, UNK
from captionmill.pipeline.explain import PictureExplanation
from captionmill.pipeline.explain_drawings import DOWN, MAP_COLUMNS, UP, draw_beam_tree, heat_map_url, photo_url
from captionmill.pipeline.explain_words import (
    show_number,
    show_probability,
    tell_how_computed,
    tell_scaling,
    tell_start,
)
from captionmill.stages.decoding.explain import Numbers, Reference, ScoredWord, Step, Walk

_TEMPLATE_PATH = Path(__file__).parents[1] / "data" / "assets" / "explain.html"
_PHOTO_SIDE = 640  # pixels
_LARGEST = 10
_SATURATION = 99.5  # percentile at which a heat map's colour is full: a few outliers must not make the rest pale

_LAYERS = {"hidden": "Hidden state h0", "cell": "Cell state c0", "image": "Image vector, beside every word"}


def render_page(explained: PictureExplanation) -> str:
    """The page as one string of HTML."""
    sections = [_numbers_section, _start_section, _greedy_section, _beam_section, _references_section, _check_section]
    bodies = [body for section in sections if (body := section(explained))]
    numbered = [body.replace("<h2>", f"<h2><span>{number}</span>", 1) for number, body in enumerate(bodies, 1)]
    template = Template(_TEMPLATE_PATH.read_text(encoding="utf-8"))
    title = html.escape(f"{explained.name}: {explained.caption}")
    return template.substitute(title=title, up=UP, down=DOWN, body="\n".join([_head(explained), *numbered]))


def _head(explained: PictureExplanation) -> str:
    explanation = explained.explanation
    photo = ""
    if explained.picture:
        photo = (
            f'<figure class="photo"><img alt="the picture" src="{photo_url(explained.picture, side=_PHOTO_SIDE)}">'
            f"<figcaption>{html.escape(explained.name)}, {explained.picture.width} &times; {explained.picture.height} "
            f"pixels</figcaption></figure>"
        )
    role = f"<p>{_sentence(explained.role)}</p>" if explained.role else ""
    text = (
        f"<div><h1>{html.escape(explained.caption)}</h1>"
        f"<p>This page shows how a picture became these words. The network is "
        f"<b>{explanation.caption.confidence:.0%}</b> sure of them: the geometric mean of the probabilities of the words, "
        f"{show_number(explanation.caption.confidence)}. {_sentence(tell_how_computed(explained))}</p>{role}"
        f'<p class="facts">{html.escape(explained.name)}. Features: {html.escape(explained.origin)}.</p></div>'
    )
    return f'<div class="top{"" if photo else " alone"}">{photo}{text}</div>'


def _numbers_section(explained: PictureExplanation) -> str:
    values, spec = explained.explanation.features, explained.bundles[0].spec
    seen = ""
    if explained.seen is not None:
        pixels = Image.fromarray(explained.seen)
        seen = (
            f'<figure class="seen"><img alt="what the network sees" src="{photo_url(pixels, side=_PHOTO_SIDE)}">'
            f"<figcaption>What the network sees: {pixels.width} &times; {pixels.height} pixels, "
            f"{html.escape(spec.preprocess)}</figcaption></figure>"
        )
    facts = (
        f"shape [{len(values)}], least {show_number(values.min())}, largest {show_number(values.max())}, "
        f"mean {show_number(values.mean())}, exactly zero {np.mean(values == 0):.1%}; "
        f"weights {html.escape(Path(spec.weights).name)}, SHA-256 {html.escape(spec.weights_sha256[:12])}"
    )
    heat = _heat(values, float(np.percentile(values, _SATURATION)) or 1.0, "the features of the picture")
    return (
        f"<section><h2>The picture becomes {len(values):,} numbers</h2>"
        f"<p>A {html.escape(spec.backbone)}, a network that has learned to tell pictures apart, looks at a small version of "
        f"the picture. Each number says how strongly one pattern that it has learned is there; a pattern has no name, only "
        f"its index. From here on the decoder sees these numbers alone, never the picture.</p>"
        f'<p class="facts">{facts}</p>'
        f'<div class="maps"><div class="card">{heat}{_map_note(len(values))}</div>'
        f'<div class="card">{seen}<h3>The largest</h3>{_largest_table(values, explained)}</div></div>'
        f"{_all_numbers(values)}</section>"
    )


def _largest_table(values: Numbers, explained: PictureExplanation) -> str:
    starts = explained.explanation.starts
    names = [""] if len(starts) == 1 else [f" ({number})" for number in range(1, len(starts) + 1)]
    head = "".join(f"<th>as the decoder takes it{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{index}</td><td>{show_number(values[index])}</td>"
        + "".join(f"<td>{show_number(start.scaled[index])}</td>" for start in starts)
        + "</tr>"
        for index in np.argsort(-values, kind="stable")[:_LARGEST]
    )
    return f'<div class="scroll"><table><tr><th>index</th><th>number</th>{head}</tr>{rows}</table></div>'


def _start_section(explained: PictureExplanation) -> str:
    blocks = []
    for start, config, model in zip(explained.explanation.starts, explained.decoders, explained.models, strict=True):
        scaled = start.scaled
        limit = float(np.percentile(np.abs(scaled), _SATURATION)) or 1.0
        cards = [
            f'<div class="card"><h3>The numbers, scaled</h3>{_heat(scaled, limit, "the scaled features")}'
            f'<p class="facts">shape [{len(scaled)}], mean {show_number(scaled.mean())}, root mean square '
            f"{show_number(np.sqrt(np.mean(scaled**2)))}; furthest from usual: {_furthest(scaled)}</p></div>"
        ]
        states = []
        for part in start.parts:
            values = part.values
            layer = f", layer {part.layer} of {config.layers}" if config.layers > 1 and part.name != "image" else ""
            states.append(
                f"<h3>{_LAYERS[part.name]}{layer}</h3>"
                f"{_heat(values, max(1.0, float(np.abs(values).max())), _LAYERS[part.name])}"
                f'<p class="facts">shape [{len(values)}], least {show_number(values.min())}, largest '
                f"{show_number(values.max())}, mean size {show_number(np.abs(values).mean())}</p>"
                f"{_all_numbers(values)}"
            )
        cards.append(f'<div class="card">{"".join(states)}</div>')
        title = f"<h3>Model {html.escape(model)}</h3>" if len(explained.models) > 1 else ""
        blocks.append(
            f"{title}<p>{_sentence(tell_scaling(config))} {_sentence(tell_start(config))}</p>"
            f'<div class="maps">{"".join(cards)}</div>'
        )
    return f"<section><h2>The numbers become the decoder's first state</h2>{''.join(blocks)}</section>"


def _furthest(scaled: Numbers) -> str:
    indices = np.argsort(-np.abs(scaled), kind="stable")[:5]
    return ", ".join(f"{index}: {scaled[index]:+.3f}" for index in indices)


def _greedy_section(explained: PictureExplanation) -> str:
    walk, count = explained.explanation.greedy, len(explained.bundles[0].vocabulary)
    same = walk.words == explained.explanation.caption.words
    verdict = (
        "It is the caption that the beam search below finds too."
        if same
        else f"Its confidence is {show_number(walk.confidence)}. The beam search below finds another caption, which is the "
        "one that is given out."
    )
    cut = " It was cut at the maximum length." if walk.cut else ""
    return (
        f"<section><h2>Word by word: the highest score wins</h2>"
        f"<p>At each step the last word goes in, and the decoder gives each of its {count:,} words a score, the "
        f"<b>{_score_name(explained)}</b>. {_tell_softmax(explained)} The word of the highest score comes out and is fed in "
        f"at the next step, until it is &lt;end&gt;. This is called greedy.</p>"
        f"<p>It says: <b>{html.escape(explained.greedy_caption)}</b>. {verdict}{cut}</p>"
        f"{_walk_html(walk, explained, 'greedy')}</section>"
    )


def _score_name(explained: PictureExplanation) -> str:
    return "logit" if len(explained.models) == 1 else "log probability"


def _tell_softmax(explained: PictureExplanation) -> str:
    if len(explained.models) == 1:
        return "Softmax turns the logits into probabilities, which add up to one."
    return (
        f"Each of the {len(explained.models)} decoders turns its logits into probabilities by softmax; the score is the "
        "natural logarithm of the mean of these probabilities."
    )


def _walk_html(walk: Walk, explained: PictureExplanation, prefix: str) -> str:
    chips = "".join(
        f'<li><a href="#{prefix}-{step.number}">{html.escape(step.chosen.word)}'
        f"<small>{show_probability(step.chosen.probability)}</small>"
        f'<b style="--p:{step.chosen.probability:.1%}"></b></a></li>'
        for step in walk.steps
    )
    cards = "".join(_step_card(step, explained, f"{prefix}-{step.number}") for step in walk.steps)
    return f'<ol class="sentence">{chips}</ol><div class="steps">{cards}</div>'


def _step_card(step: Step, explained: PictureExplanation, anchor: str) -> str:
    listed = [*step.top] if step.chosen in step.top else [*step.top, step.chosen]
    rows = "".join(_word_row(word, word == step.chosen) for word in listed)
    return (
        f'<div class="card" id="{anchor}"><h3><small>Step {step.number}</small>'
        f"<b>{html.escape(step.fed_word)}</b> ({step.fed}) goes in, "
        f"<b>{html.escape(step.chosen.word)}</b> ({step.chosen.index}) comes out</h3>"
        f'<div class="scroll"><table><tr><th></th><th class="word">word</th><th>index</th><th>{_score_name(explained)}</th>'
        f"<th>probability</th></tr>{rows}</table></div></div>"
    )


def _word_row(word: ScoredWord, is_chosen: bool) -> str:
    shown = html.escape(word.word)
    if word.barred and not is_chosen:
        shown = f"<s>{shown}</s> <em>{word.barred}</em>"
    kind = "chosen" if is_chosen else "barred" if word.barred else ""
    return (
        f'<tr class="{kind}"><td>{word.rank}</td><td class="word">{shown}</td><td>{word.index}</td>'
        f'<td>{show_number(word.logit)}</td><td class="bar" style="--p:{word.probability:.1%}">'
        f"{show_probability(word.probability)}</td></tr>"
    )


def _beam_section(explained: PictureExplanation) -> str:
    explanation, search = explained.explanation, explained.search
    tree = explanation.beam
    captions = "".join(
        f"<li>{html.escape(caption)} <span class='quiet'>score {show_number(node.score)}"
        f"{'' if node.ended else ', not ended when the search could stop'}</span></li>"
        for caption, node in zip(tree.captions, tree.steps[-1], strict=True)
    )
    divided = (
        f"The score is this sum divided by the number of words to the power {search.length_penalty:g} "
        "(--length-penalty), so that short captions are not favoured."
        if search.length_penalty
        else "The score is this sum (--length-penalty 0)."
    )
    cut = f" The winner was cut at {search.max_length} words (--max-length)." if tree.cut else ""
    same = explanation.greedy.words == explanation.caption.words
    winner = ""
    if not same:
        winner = (
            "<details open><summary>The winner, step by step</summary>"
            f"{_walk_html(explanation.caption, explained, 'winner')}</details>"
        )
    return (
        f"<section><h2>The beam: {search.beam_size} captions at once</h2>"
        f"<p>The likeliest first word need not begin the likeliest caption. So the search keeps the {search.beam_size} best "
        f"beginnings at each step (--beam-size), the best at the left. <b>ln p</b> is the logarithm of a word's probability, "
        f"<b>sum</b> that of all words so far. {divided} A caption with a dot has ended and keeps its place as long as its "
        f"score does. The search stops when no unfinished caption can overtake the best.{cut}</p>"
        f'<div class="card tree scroll">{draw_beam_tree(tree)}</div>'
        f"<p>In the beam at the end:</p><ol class='captions'>{captions}</ol>"
        f"<details><summary>The tree as a table</summary>{_beam_table(explained)}</details>{winner}</section>"
    )


def _beam_table(explained: PictureExplanation) -> str:
    rows = "".join(
        f'<tr class="{"chosen" if node.wins else ""}"><td>{node.step}</td><td>{node.place + 1}</td>'
        f"<td>{'' if node.parent is None else node.parent + 1}</td><td class='word'>{html.escape(node.word)}"
        f"{' <em>ended, kept</em>' if node.carried else ''}</td><td>{node.index}</td>"
        f"<td>{'' if node.carried else show_number(node.log_probability)}</td><td>{show_number(node.total)}</td>"
        f"<td>{node.length}</td><td>{show_number(node.score)}</td></tr>"
        for kept in explained.explanation.beam.steps
        for node in kept
    )
    return (
        '<div class="scroll card"><table><tr><th>step</th><th>place</th><th>parent</th><th class="word">word</th>'
        f"<th>index</th><th>ln p</th><th>sum</th><th>words</th><th>score</th></tr>{rows}</table></div>"
    )


def _references_section(explained: PictureExplanation) -> str:
    references = explained.explanation.references
    if not references:
        return ""
    settings = explained.bundles[0].training
    smoothing = settings.get("label_smoothing")
    trained = "plain, without the dropout" + (f" and the label smoothing of {smoothing:g}" if smoothing else "")
    longest = settings.get("max_length")
    cards = "".join(_reference_card(reference, explained, longest) for reference in references)
    own = explained.explanation.caption
    total = sum(len(reference.walk.steps) for reference in references)
    mean = sum(reference.walk.cross_entropy * len(reference.walk.steps) for reference in references) / total
    return (
        f"<section><h2>What people wrote, and how it surprises the network</h2>"
        f"<p>In training the words of a person's caption are fed in one by one, whatever the network would have said itself "
        f"(teacher forcing). <b>Cross entropy</b> is how much each next word surprises it: -ln of the probability that it gave "
        f"the word, in nats. 0 is no surprise at all, {np.log(len(explained.bundles[0].vocabulary)):.2f} is what guessing "
        f"among all words would cost. Training makes it smaller; here it is {trained} that training adds.</p>"
        f"<p>{len(references)} captions ({html.escape(explained.references_from)}): mean {mean:.4f} nats a word. The network's "
        f"own caption by the same measure: {own.cross_entropy:.4f}.</p>"
        f'<div class="steps">{cards}</div></section>'
    )


def _reference_card(reference: Reference, explained: PictureExplanation, longest: object) -> str:
    walk = reference.walk
    written = [*reference.words, walk.steps[-1].chosen.word]
    most = max(-step.chosen.log_probability for step in walk.steps)
    rows = "".join(
        f"<tr><td class='word'>{_word_of(step, word)}</td><td>{step.chosen.index}</td><td>{step.chosen.rank}</td>"
        f"<td>{show_probability(step.chosen.probability)}</td>"
        f'<td class="bar" style="--p:{-step.chosen.log_probability / (most or 1):.1%}">'
        f"{show_number(-step.chosen.log_probability)}</td><td class='word'>{html.escape(step.top[0].word)}</td></tr>"
        for step, word in zip(walk.steps, written, strict=True)
    )
    cut = ""
    if isinstance(longest, int) and len(reference.words) > longest:
        cut = f" In training it is cut after {longest} words."
    return (
        f'<div class="card"><h3><b>{html.escape(reference.text)}</b></h3>'
        f'<div class="scroll"><table><tr><th class="word">word</th><th>index</th><th>rank</th><th>probability</th>'
        f'<th>cross entropy</th><th class="word">likeliest</th></tr>{rows}</table></div>'
        f'<p class="facts">sum {show_number(walk.cross_entropy * len(walk.steps))}, mean {show_number(walk.cross_entropy)} '
        f"nats a word, perplexity {np.exp(walk.cross_entropy):.2f}.{cut}</p></div>"
    )


def _word_of(step: Step, written: str) -> str:
    if step.chosen.index == UNK:
        return f"&lt;unk&gt; <em>{html.escape(written)}, not in the vocabulary</em>"
    return html.escape(written) if step.chosen.index != END else "&lt;end&gt;"


def _check_section(explained: PictureExplanation) -> str:
    words = explained.explanation.greedy.steps
    folders = ", ".join(f"Path({name!r})" for name in explained.models)
    features = '"features.h5"'
    code = (
        "from pathlib import Path\nimport torch\n"
        "from captionmill.data.feature_store import FeatureStore\n"
        "from captionmill.stages.decoding.caption import Captioner\n\n"
        f'captioner = Captioner.load([{folders}], device="cpu")\n'
        f"row = FeatureStore.open(Path({features}))[{explained.name!r}]   # or the numbers above\n"
        "with torch.inference_mode():\n"
        "    state = captioner.decoder.start(torch.from_numpy(row)[None].float())\n"
        f"    for word in {[step.fed for step in words]}:   # fed in\n"
        "        logits, state = captioner.decoder.step(torch.tensor([word]), state)\n"
        "        print(logits[0].topk(10), logits[0].softmax(0).topk(10))\n"
    )
    versions = ", ".join(f"{name} {version}" for name, version in explained.bundles[0].versions.items())
    return (
        "<section><h2>Check it</h2><p>Nothing here is computed for show: the numbers are what <code>Decoder.start</code> and "
        "<code>Decoder.step</code> return. These lines print the step tables again; the last digits may differ on another "
        f"machine.</p><pre>{html.escape(code)}</pre>"
        f'<p class="facts">The model was made with {html.escape(versions)}.</p></section>'
    )


def _heat(values: Numbers, limit: float, what: str) -> str:
    signed = bool((values < 0).any())
    low = f"&minus;{limit:.2f}" if signed else "0"
    return (
        f'<img class="heat" alt="{html.escape(what)}" src="{heat_map_url(values, limit)}">'
        f'<div class="scale">{low}<i class="{"both" if signed else ""}"></i>{limit:.2f}'
        f"{' or more' if np.abs(values).max() > limit else ''}</div>"
    )


def _map_note(count: int) -> str:
    if count <= MAP_COLUMNS:
        return ""
    return f'<p class="facts">{MAP_COLUMNS} numbers a row, from the top left: row r, column c (from 0) is index {MAP_COLUMNS}r + c.</p>'


def _all_numbers(values: Numbers) -> str:
    lines = (
        f"{start:5}  " + " ".join(f"{value:9.5f}" for value in values[start : start + 8])
        for start in range(0, len(values), 8)
    )
    return f"<details><summary>All {len(values):,} numbers</summary><pre>{_join(lines)}</pre></details>"


def _join(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """`text` escaped, with a capital and a full stop."""
    return html.escape(text[:1].upper() + text[1:]) + ("" if text.endswith(".") else ".")
