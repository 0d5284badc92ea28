"""An explanation as text for a terminal: the steps as tables."""

from collections.abc import Iterator

import numpy as np

from captionmill.data.captions.vocabulary import UNK
from captionmill.pipeline.pages.explain_words import (
    ImageExplanation,
    describe_computation,
    describe_scaling,
    describe_start,
    describe_total,
    show_number,
    show_probability,
)
from captionmill.pipeline.terminal.printable import printable
from captionmill.stages.decoding.beam_tree import BeamTree
from captionmill.stages.decoding.explain import Reference, ScoredWord, Walk
from captionmill.stages.decoding.folded import Numbers
from captionmill.stages.decoding.reranking import Choice

_BAR_LENGTH = 20  # characters for a probability of 1
_LARGEST = 10


def render_text(explained: ImageExplanation) -> str:
    """The whole walk; characters that could steer a terminal are shown as their escapes."""
    return "\n".join(map(printable, _lines(explained)))


def _lines(explained: ImageExplanation) -> Iterator[str]:
    explanation, tree = explained.explanation, explained.explanation.beam
    yield f"{explained.name}: {explained.caption}"
    made = "the geometric mean of the words' probabilities"
    if explanation.choice and explanation.choice.candidates[0].caption.consensus is not None:
        made = "1 - exp(-consensus)"
    yield f"confidence {show_number(explanation.confidence)}, {made}"
    yield f"computed: {describe_computation(explained)}"
    if explained.role:
        yield f"note: {explained.role}"
    yield from ("", f"features: {_describe_numbers(explanation.features)}; {explained.origin}")
    largest = np.argsort(-explanation.features, kind="stable")[:_LARGEST]
    yield "  largest, index: number  " + ", ".join(f"{index}: {explanation.features[index]:.4f}" for index in largest)
    for model, config, start in zip(explained.models, explained.decoders, explanation.starts, strict=True):
        yield from ("", f"first state of {model}: {describe_scaling(config)}; {describe_start(config)}")
        yield f"  scaled  {_describe_numbers(start.scaled)}"
        for part in start.parts:
            yield f"  {part.name} of layer {part.layer}  {_describe_numbers(part.values)}"
    yield from ("", f"greedy, the highest score at each step: {explained.greedy_caption}")
    yield from _walk_lines(explanation.greedy, is_ensemble=len(explained.models) > 1)
    yield from ("", *(_draw_lines(tree) if explained.search.sample else _beam_lines(explained)))
    if explanation.choice:
        yield from ("", *_choice_lines(explained, explanation.choice))
    if explanation.caption.words != explanation.greedy.words:
        found = "the first draw" if explained.search.sample else "the winner"
        yield from ("", f"{found}, step by step: {explained.caption}")
        yield from _walk_lines(explanation.caption, is_ensemble=len(explained.shown_models) > 1)
    for reference in explanation.references:
        yield from ("", *_reference_lines(reference, explained.references_from))


def _beam_lines(explained: ImageExplanation) -> Iterator[str]:
    tree, search = explained.explanation.beam, explained.wide_search
    has_groups = search.diversity_groups > 1
    found = f", of {explained.shown_models[0]}, which found the caption" * (explained.shown_models != explained.models)
    yield f"beam of {search.beam_size}{found}, the best at the top of each step; * leads to the winner"
    if has_groups:
        yield f"  {search.diversity_groups} groups; each keeps its best by the score less what earlier groups took (by)"
    if explained.explanation.choice and search.rerank != "matcher":
        yield "  words that the training images predict are preferred: sum and score count that, ln p does not"
    if explained.branches != tree.steps:
        yield "  only what leads to the candidates that are listed below with their scores"
    columns = "step  place  parent  word                ln p       sum  words     score"
    yield f"  {columns}{'  group        by' * has_groups}"
    for kept in explained.branches:
        for node in kept:
            parent = "" if node.parent is None else f"{node.parent + 1}"
            log_probability = "kept" if node.carried else show_number(node.log_probability)
            yield (
                f"{'*' if node.wins else ' '} {node.step:4}  {node.place + 1:5}  {parent:>6}  {node.word:14} "
                f"{log_probability:>9} {node.total:9.4f}  {node.length:5} {node.score:9.4f}"
                + (f"  {node.group + 1:5} {node.rank_score:9.4f}" if has_groups else "")
            )
    yield "  in the beam at the end:"
    for caption, node in zip(tree.captions, tree.steps[-1], strict=True):
        yield f"  {node.score:9.4f}  {caption}{'' if node.ended else ' ... (not ended)'}"


def _choice_lines(explained: ImageExplanation, choice: Choice) -> Iterator[str]:
    by = explained.search.rerank
    count = len(choice.candidates)
    yield f"the choice among the {count} candidates, the highest total first: {describe_total(explained)}"
    has_consensus, has_match = by != "matcher", by != "consensus"
    has_repetition, has_length = choice.config.repetition_weight > 0, choice.config.length_weight > 0
    yield (
        f"  place    total{'  consensus' * has_consensus}  mean ln p{'    match' * has_match}"
        f"{'  repetition' * has_repetition}{'  words' * has_length}  caption"
    )
    for place, candidate in explained.candidates:
        score = candidate.score
        yield (
            f"{'*' if place == 1 else ' '} {place:5}  {score.total:7.4f}"
            + f"  {score.consensus:9.4f}" * has_consensus
            + f"  {score.log_probability:9.4f}"
            + f"  {score.match:7.4f}" * has_match
            + f"  {score.repetition:10.4f}" * has_repetition
            + f"  {score.length:5g}" * has_length
            + f"  {explained.text_of(candidate.caption.words)}"
            + "  (the search's first choice)" * (candidate.place == 0)
        )
    if choice.neighbours:
        yield f"  consensus: the {len(choice.neighbours)} of {choice.images:,} training images that count most"
    if choice.neighbours and choice.trust < 1:
        yield f"  the weights were multiplied by {choice.trust:.4f}: the image is far from all training images"
    for neighbour in choice.neighbours:
        key = explained.training_key(neighbour.image)
        yield f"  weight {neighbour.weight:7.4f}, cosine {neighbour.cosine:.4f}{', ' + key if key else ''}"
        yield from (f"      {explained.text_of(words)}" for words in neighbour.captions)
    if choice.word_matches:
        words = (explained.text_of([word]) for word in choice.candidates[0].caption.words)
        matches = (f"{word} {match:.4f}" for word, match in zip(words, choice.word_matches, strict=True))
        yield f"  match of each word by itself: {', '.join(matches)}"


def _draw_lines(tree: BeamTree) -> Iterator[str]:
    yield "drawn at random, word by word; the first draw is the caption, the others are its alternatives"
    yield "  draw       sum  words  caption"
    for caption, node in zip(tree.captions, tree.steps[-1], strict=True):
        yield f"{'*' if node.wins else ' '} {node.place + 1:5} {node.total:9.4f}  {node.length:5}  {caption}"


def _describe_numbers(values: Numbers) -> str:
    return (
        f"{len(values):,} numbers, {show_number(values.min())} to {show_number(values.max())}, mean "
        f"{show_number(values.mean())}, {np.mean(values == 0):.1%} zero"
    )


def _walk_lines(walk: Walk, *, is_ensemble: bool) -> Iterator[str]:
    for step in walk.steps:
        yield (
            f"step {step.number}: {step.fed_word} ({step.fed}) goes in, "
            f"{step.chosen.word} ({step.chosen.index}) comes out"
        )
        yield f"     rank  index  word               {'ln p' if is_ensemble else 'logit':>9}  probability"
        listed = [*step.top] if step.chosen in step.top else [*step.top, step.chosen]
        for word in listed:
            yield _word_line(word, is_chosen=word == step.chosen)


def _word_line(word: ScoredWord, *, is_chosen: bool) -> str:
    bar = "#" * round(word.probability * _BAR_LENGTH)
    note = f"({word.barred})" if word.barred and not is_chosen else bar
    return (
        f"  {'*' if is_chosen else ' '} {word.rank:5}  {word.index:5}  {word.word:18} {word.logit:9.4f}  "
        f"{show_probability(word.probability):>11}  {note}"
    ).rstrip()


def _reference_lines(reference: Reference, where: str) -> Iterator[str]:
    yield f"reference ({where}): {reference.text}"
    yield "   index  word                 rank  probability  cross entropy, nats"
    written = (*reference.words, "")
    for step, word in zip(reference.walk.steps, written, strict=True):
        shown = f"<unk> {word}" if step.chosen.index == UNK else step.chosen.word
        yield (
            f"  {step.chosen.index:6}  {shown:18} {step.chosen.rank:6}  "
            f"{show_probability(step.chosen.probability):>11}  {-step.chosen.log_probability:13.4f}"
        )
    yield f"  mean {show_number(reference.walk.cross_entropy)} nats per word"
