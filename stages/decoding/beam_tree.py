"""The beam search of one image as a tree: what was kept at each step, from where, and with which score.

A walk of its own, in plain lists, so that every step can be looked at: `search.py` does the same for many images at
once. The tests hold the two equal.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captionmill.data.captions.vocabulary import END, START, Vocabulary
from captionmill.stages.decoding.constraints import NEVER_CHOSEN
from captionmill.stages.decoding.search import StepDecoder
from captionmill.stages.settings import SearchConfig


@dataclass(frozen=True)
class BeamNode:
    """A caption that was kept at one step, by its last word."""

    step: int
    """From 1; the step that chose this word."""
    place: int
    """In the beam of this step, from 0, the best first."""
    parent: int | None
    """Place in the beam of the step before; None at the first step."""
    index: int
    """Of the word."""
    word: str
    log_probability: float
    """Natural logarithm of the word's probability given those before it; 0 if only carried on."""
    total: float
    """Sum of the log probabilities of all words so far."""
    length: int
    """Words so far, `<end>` counted."""
    score: float
    """`total` divided by `length` to the power of the length penalty: what captions are ranked by."""
    ended: bool
    """The caption ends here, or has ended before."""
    carried: bool = False
    """It had ended before, and keeps its place as it is."""
    wins: bool = False
    """It lies on the path to the caption that is given out."""


@dataclass(frozen=True)
class BeamTree:
    """All steps of a beam search."""

    steps: tuple[tuple[BeamNode, ...], ...]
    """The beam after each step, the best first."""
    words: tuple[int, ...]
    """The winner's words, without `<start>` and `<end>`."""
    cut: bool
    """The winner reached the maximum length before `<end>`, which was then put after it."""
    captions: tuple[str, ...]
    """What each caption of the last beam says, the winner first; one that has not ended is still unfinished."""

    @property
    def winner(self) -> BeamNode:
        """The end of the caption that is given out."""
        return self.steps[-1][0]


@torch.inference_mode()
def grow_beam_tree(decoder: StepDecoder, features: Tensor, vocabulary: Vocabulary, search: SearchConfig) -> BeamTree:
    """The beam search of one image, features [1, D], by the rules of `search_captions`."""
    state = decoder.start(features)  # each [L, 1, H]
    fed = torch.tensor([START], device=features.device)
    steps: list[tuple[BeamNode, ...]] = []
    running: list[BeamNode | None] = [None]  # what the rows of `state` belong to
    for step in range(1, search.max_length + 2):  # one more than the words, for <end>
        logits, state = decoder.step(fed, state)
        log_probabilities = logits.float().log_softmax(dim=-1)  # [R, V]
        _bar_words(log_probabilities, is_first=step == 1, is_last=step > search.max_length)
        found = [
            replace(node, step=step, parent=node.place, log_probability=0.0, carried=True)
            for node in (steps[-1] if steps else ())
            if node.ended
        ]
        for row, parent in zip(log_probabilities, running, strict=True):
            found += _continue(parent, row, vocabulary, search, step)
        found.sort(key=lambda node: -node.score)
        kept = tuple(replace(node, place=place) for place, node in enumerate(found[: search.beam_size]))
        rows = {node.place if node else None: row for row, node in enumerate(running)}
        running = [node for node in kept if not node.ended]
        steps.append(kept)
        if not running or (kept[0].ended and not _can_be_overtaken(kept, search)):
            break
        chosen = torch.tensor([rows[node.parent] for node in running if node], device=features.device)
        state = tuple(part[:, chosen] for part in state)
        fed = torch.tensor([node.index for node in running if node], device=features.device)
    paths = [_path_to(steps, node) for node in steps[-1]]
    winning = {(node.step, node.place) for node in paths[0]}
    marked = tuple(tuple(replace(node, wins=(node.step, node.place) in winning) for node in kept) for kept in steps)
    captions = [[node.index for node in path if not node.ended] for path in paths]
    return BeamTree(
        steps=marked,
        words=tuple(captions[0]),
        cut=len(captions[0]) == search.max_length,
        captions=tuple(vocabulary.decode(words) for words in captions),
    )


def _bar_words(log_probabilities: Tensor, *, is_first: bool, is_last: bool) -> None:
    """Put -inf in [R, V] where a word must not come next."""
    log_probabilities[:, NEVER_CHOSEN] = -math.inf
    if is_first:
        log_probabilities[:, END] = -math.inf
    if is_last:
        log_probabilities[:, :END] = -math.inf
        log_probabilities[:, END + 1 :] = -math.inf


def _continue(
    parent: BeamNode | None, log_probabilities: Tensor, vocabulary: Vocabulary, search: SearchConfig, step: int
) -> list[BeamNode]:
    """The best continuations of one caption, as many as the beam has places; `log_probabilities` [V]."""
    total, length = (parent.total, parent.length) if parent else (0.0, 0)
    best, indices = log_probabilities.topk(min(search.beam_size, len(log_probabilities)))
    return [
        BeamNode(
            step=step,
            place=0,  # known once all are ranked
            parent=parent.place if parent else None,
            index=index,
            word=vocabulary.words[index],
            log_probability=log_probability,
            total=total + log_probability,
            length=length + 1,
            score=(total + log_probability) / (length + 1) ** search.length_penalty,
            ended=index == END,
        )
        for log_probability, index in zip(best.tolist(), indices.tolist(), strict=True)
        if log_probability > -math.inf
    ]


def _can_be_overtaken(kept: tuple[BeamNode, ...], search: SearchConfig) -> bool:
    """Whether a caption that goes on may still beat the best: sums only fall, and the longest divides most."""
    longest = (search.max_length + 1) ** search.length_penalty
    return any(node.total / longest > kept[0].score for node in kept if not node.ended)


def _path_to(steps: list[tuple[BeamNode, ...]], node: BeamNode) -> list[BeamNode]:
    """The nodes from the first step to `node`."""
    path = [node]
    while (parent := path[-1].parent) is not None:
        path.append(steps[path[-1].step - 2][parent])
    return path[::-1]
