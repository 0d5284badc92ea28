"""How much of the captions a vocabulary covers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from captionmill.data.vocabulary import Vocabulary, tokenize


@dataclass(frozen=True)
class VocabularyStatistics:
    """Captions, counted in the words of a vocabulary. A share is 0 to 1."""

    tokens: int
    """Words of the captions, each time that one occurs."""
    types: int
    """Words that differ from each other."""
    types_known: int
    """Those of them that have an index of their own."""
    unknown: float
    """Share of the tokens that the decoder reads as `<unk>`."""
    frequent: tuple[tuple[str, int], ...]
    """The words with an index that occur most, and how often, the most frequent first, ties by alphabet."""


def describe_vocabulary(
    vocabulary: Vocabulary, captions: Iterable[str], *, most_frequent: int = 30
) -> VocabularyStatistics:
    """What `vocabulary` covers of `captions`, plain sentences; all is 0 where there are none."""
    counts = Counter(word for caption in captions for word in tokenize(caption))
    known = {word: count for word, count in counts.items() if word in vocabulary}
    tokens = counts.total()
    return VocabularyStatistics(
        tokens=tokens,
        types=len(counts),
        types_known=len(known),
        unknown=1 - sum(known.values()) / tokens if tokens else 0.0,
        frequent=tuple(sorted(known.items(), key=lambda item: (-item[1], item[0]))[:most_frequent]),
    )
