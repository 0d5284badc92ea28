"""The sections of an explanation's page that go word by word: greedy, the beam, the references."""

import html
import math

from captionmill.data.captions.vocabulary import UNK
from captionmill.pipeline.pages.drawings import draw_beam_tree
from captionmill.pipeline.pages.explain_words import PictureExplanation, show_number, show_probability
from captionmill.stages.decoding.explain import Reference, ScoredWord, Step, Walk


def greedy_section(explained: PictureExplanation) -> str:
    """The highest score at each step, as a table a step."""
    walk, count = explained.explanation.greedy, len(explained.bundles[0].vocabulary)
    verdict = "It is the caption that the beam search below finds too."
    if walk.words != explained.explanation.caption.words:
        verdict = (
            f"Its confidence is {show_number(walk.confidence)}. The beam search below finds another caption, and "
            "that one is given out."
        )
    cut = " It was cut at the maximum length." if walk.cut else ""
    return (
        "<section><h2>Word by word: the highest score wins</h2>"
        f"<p>At each step the last word goes in, and the decoder gives each of its {count:,} words a score, "
        f"the <b>{_score_name(explained)}</b>. {_tell_softmax(explained)} The word of the highest score comes out and "
        "goes in at the next step, until it is &lt;end&gt;. This is called greedy.</p>"
        f"<p>It says: <b>{html.escape(explained.greedy_caption)}</b>. {verdict}{cut}</p>"
        f"{_walk_html(walk, explained, 'greedy')}</section>"
    )


def beam_section(explained: PictureExplanation) -> str:
    """The beam as a tree and as a table, and the winner step by step where greedy search finds another caption."""
    explanation, search = explained.explanation, explained.search
    tree = explanation.beam
    captions = "".join(
        f'<li>{html.escape(caption)} <span class="quiet">score {show_number(node.score)}'
        f"{'' if node.ended else ', not ended when the search could stop'}</span></li>"
        for caption, node in zip(tree.captions, tree.steps[-1], strict=True)
    )
    divided = "The <b>score</b> is this sum (--length-penalty 0)."
    if search.length_penalty:
        divided = (
            "The <b>score</b> is this sum divided by the number of words to the power of "
            f"{search.length_penalty:g} (--length-penalty), so that short captions are not favoured."
        )
    cut = f" The winner was cut at {search.max_length} words (--max-length)." if tree.cut else ""
    winner = ""
    if explanation.greedy.words != explanation.caption.words:
        winner = f"<h3>The winner, step by step</h3>{_walk_html(explanation.caption, explained, 'winner')}"
    kept = "the best caption" if search.beam_size == 1 else f"the {search.beam_size} best beginnings"
    return (
        f"<section><h2>The beam: captions side by side, {search.beam_size} at most</h2>"
        f"<p>The likeliest first word need not begin the likeliest caption. So the search keeps {kept} at each step "
        "(--beam-size), the best at the left. <b>ln p</b> is the natural logarithm of a word's probability, <b>sum</b> "
        f"that of all words so far. {divided} A caption with a dot has ended; it keeps a place as long as its score is "
        f"good enough. The search stops when no unfinished caption can overtake the best.{cut}</p>"
        f'<div class="card tree scroll">{draw_beam_tree(tree)}</div>'
        f'<p>In the beam at the end:</p><ol class="captions">{captions}</ol>'
        f"<details><summary>The tree as a table</summary>{_beam_table(explained)}</details>{winner}</section>"
    )


def references_section(explained: PictureExplanation) -> str:
    """Each reference with the cross entropy of its words; "" without references."""
    references = explained.explanation.references
    if not references:
        return ""
    settings = explained.bundles[0].training
    smoothing, longest = settings.get("label_smoothing"), settings.get("max_length")
    added = "the dropout"
    if isinstance(smoothing, int | float) and smoothing:
        added = f"the dropout and the label smoothing ({smoothing:g})"
    steps = [step for reference in references for step in reference.walk.steps]
    mean = -math.fsum(step.chosen.log_probability for step in steps) / len(steps)
    cards = "".join(_reference_card(reference, longest) for reference in references)
    return (
        "<section><h2>What people wrote, and how it surprises the network</h2>"
        "<p>In training the words of a person's caption go in one by one, whatever the network would have said "
        "itself (teacher forcing). <b>Cross entropy</b> is how much the next word surprises it: &minus;ln of the "
        "probability that it gave that word, in nats. No surprise at all is 0; guessing blindly among all words costs "
        f"{math.log(len(explained.bundles[0].vocabulary)):.2f}. Training makes it smaller; here it stands without "
        f"{added} that training adds. A word that training did not see often enough has no index of its own and counts "
        "as &lt;unk&gt;.</p>"
        f"<p>{len(references)} captions ({html.escape(explained.references_from)}), mean <b>{mean:.4f}</b> nats a "
        f"word. The caption of the network itself, by the same measure: "
        f"{explained.explanation.caption.cross_entropy:.4f}.</p>"
        f'<div class="steps wide">{cards}</div></section>'
    )


def _score_name(explained: PictureExplanation) -> str:
    return "logit" if len(explained.models) == 1 else "log probability"


def _tell_softmax(explained: PictureExplanation) -> str:
    if len(explained.models) == 1:
        return "Softmax turns the logits into probabilities, which add up to one."
    return (
        f"Each of the {len(explained.models)} decoders turns its logits into probabilities by softmax; the score is "
        "the natural logarithm of the mean of these probabilities."
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
        '<div class="scroll"><table><tr><th></th><th class="word">word</th><th>index</th>'
        f"<th>{'logit' if len(explained.models) == 1 else 'ln p'}</th><th>probability</th></tr>"
        f"{rows}</table></div></div>"
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


def _beam_table(explained: PictureExplanation) -> str:
    rows = "".join(
        f'<tr class="{"chosen" if node.wins else ""}"><td>{node.step}</td><td>{node.place + 1}</td>'
        f'<td>{"" if node.parent is None else node.parent + 1}</td><td class="word">{html.escape(node.word)}'
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


def _reference_card(reference: Reference, longest: object) -> str:
    walk = reference.walk
    written = [*reference.words, walk.steps[-1].chosen.word]
    most = max(-step.chosen.log_probability for step in walk.steps) or 1.0
    rows = "".join(_reference_row(step, word, most) for step, word in zip(walk.steps, written, strict=True))
    cut = ""
    if isinstance(longest, int) and len(reference.words) > longest:
        cut = f" In training it is cut after {longest} words."
    return (
        f'<div class="card"><h3><b>{html.escape(reference.text)}</b></h3>'
        '<div class="scroll"><table><tr><th class="word">the next word</th><th>index</th><th>rank</th>'
        '<th>probability</th><th>cross entropy</th><th class="left">likeliest</th></tr>'
        f'{rows}</table></div><p class="facts">sum {show_number(walk.cross_entropy * len(walk.steps))}, mean '
        f"{show_number(walk.cross_entropy)} nats a word, perplexity {math.exp(walk.cross_entropy):.2f}.{cut}</p></div>"
    )


def _reference_row(step: Step, written: str, most: float) -> str:
    surprise = -step.chosen.log_probability
    word = html.escape(written)
    if step.chosen.index == UNK:
        word = f"&lt;unk&gt; <em>{word}</em>"
    return (
        f'<tr><td class="word">{word}</td><td>{step.chosen.index}</td><td>{step.chosen.rank}</td>'
        f"<td>{show_probability(step.chosen.probability)}</td>"
        f'<td class="bar" style="--p:{surprise / most:.1%}">{show_number(surprise)}</td>'
        f'<td class="left">{html.escape(step.top[0].word)}</td></tr>'
    )
