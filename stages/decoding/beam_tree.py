"""The steps of one image's search as a tree: what was kept at each step, from where, and with which score.

It is built from the trace of the search that found the caption. Each drawn caption is a branch of it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.stages.settings import SearchConfig


@dataclass(frozen=True)
class TracedStep:
    """The record of one step of one image, from which an explanation is made: the captions after it, K of them.

    The best stand first, drawn ones in the order of the draws.
    """

    places: list[int]
    """The place of each in the search's own order, which `parents` of the next step refer to."""
    parents: list[int]
    """Where the caption that each continues stood before this step; of no meaning at the first step."""
    words: list[int]
    """The word that each took; of no meaning where it had ended before."""
    log_probabilities: list[float]
    """Natural logarithm of that word's probability given those before it; 0 where it had ended before."""
    sums: list[float]
    """Of the log probabilities of all its words."""
    scores: list[float]
    """`sums` divided by `lengths` to the power of the length penalty."""
    ranks: list[float]
    """The scores by which they were chosen: less what earlier groups of the beam took from them."""
    lengths: list[int]
    """Words so far, `<end>` counted."""
    ended: list[bool]
    """Whether it ends here, or has ended before."""


@dataclass(frozen=True)
class BeamNode:
    """A caption that was kept at one step, by its last word."""

    step: int
    """From 1; the step that chose this word."""
    place: int
    """In the beam of this step, from 0, the best first; of drawn captions, the number of the draw."""
    parent: int | None
    """Place in the beam of the step before; None at the first step."""
    index: int
    """Of the word."""
    word: str
    log_probability: float
    """Natural logarithm of the word's probability given those before it; 0 if carried."""
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
    group: int = 0
    """Of the beam, from 0; each group avoids the words of those before it."""
    rank_score: float = 0.0
    """The score by which its group kept it: `score` less what diversity took for words of earlier groups."""


@dataclass(frozen=True)
class BeamTree:
    """All steps of a search, or of several draws."""

    steps: tuple[tuple[BeamNode, ...], ...]
    """The beam after each step, the best first."""
    words: tuple[int, ...]
    """The winner's words, without `<start>` and `<end>`."""
    cut: bool
    """The winner reached the maximum length before `<end>`, which was then put after it."""
    captions: tuple[str, ...]
    """The text of each caption of the last beam, the best first; one that has not ended is still unfinished."""
    place: int = 0
    """The winner's place in the last beam: not 0 where candidates were re-ranked."""

    def branches(self, captions: Collection[tuple[int, ...]]) -> tuple[tuple[BeamNode, ...], ...]:
        """The steps with only those nodes that lead to one of the `captions`, which are word indices."""
        paths = [_path_to(self.steps, node) for node in self.steps[-1]]
        nodes = [node for path in paths if _words_on(path) in captions for node in path]
        kept = {(node.step, node.place) for node in nodes}
        return tuple(tuple(node for node in step if (node.step, node.place) in kept) for step in self.steps)


def build_beam_tree(
    trace: Sequence[TracedStep], vocabulary: Vocabulary, search: SearchConfig, words: Sequence[int]
) -> BeamTree:
    """The tree of the steps that `search_captions` or `draw_captions` recorded by `search`; `words`: the winner's."""
    steps: list[tuple[BeamNode, ...]] = []
    before: dict[int, BeamNode] = {}  # the captions of the step before, by their places in the search's own order
    for traced in trace:
        kept = _nodes(traced, before, len(steps) + 1, vocabulary, search)
        before = dict(zip(traced.places, kept, strict=True))
        steps.append(kept)
    paths = [_path_to(steps, node) for node in steps[-1]]
    captions = [_words_on(path) for path in paths]
    place = captions.index(tuple(words))
    winning = {(node.step, node.place) for node in paths[place]}
    marked = tuple(tuple(replace(node, wins=(node.step, node.place) in winning) for node in kept) for kept in steps)
    return BeamTree(
        steps=marked,
        words=captions[place],
        cut=len(captions[place]) == search.longest,
        captions=tuple(vocabulary.decode(caption) for caption in captions),
        place=place,
    )


def _nodes(
    traced: TracedStep, before: dict[int, BeamNode], step: int, vocabulary: Vocabulary, search: SearchConfig
) -> tuple[BeamNode, ...]:
    """The captions of one step, those `before` it by their places in the search's own order."""
    nodes = []
    for place, own_place in enumerate(traced.places):
        parent = before.get(traced.parents[place])
        carried = parent is not None and parent.ended
        index = parent.index if parent and carried else traced.words[place]
        nodes.append(
            BeamNode(
                step=step,
                place=place,
                parent=parent.place if parent else None,
                index=index,
                word=vocabulary.words[index],
                log_probability=traced.log_probabilities[place],
                total=traced.sums[place],
                length=traced.lengths[place],
                score=traced.scores[place],
                rank_score=traced.ranks[place],
                ended=traced.ended[place],
                carried=carried,
                group=0 if search.sample else own_place * search.diversity_groups // search.beam_size,
            )
        )
    return tuple(nodes)


def _words_on(path: Sequence[BeamNode]) -> tuple[int, ...]:
    """The caption of a path from the first step, without `<end>`."""
    return tuple(node.index for node in path if not node.ended)


def _path_to(steps: Sequence[tuple[BeamNode, ...]], node: BeamNode) -> list[BeamNode]:
    """The nodes from the first step to `node`."""
    path = [node]
    while (parent := path[-1].parent) is not None:
        path.append(steps[path[-1].step - 2][parent])
    return path[::-1]
