"""Statistics of captions and vocabularies: length, variety, copies, repetition, coverage, confidence."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary, WordCounts
from captionmill.data.captions.words import WORD_RULE, has_unspaced_script, tokenize

REPEATED_ORDER = 3  # words in a row; decoders often block their repetition since Paulus et al. (arXiv 1705.04304)
_PARTS = 4


@dataclass(frozen=True)
class CaptionTraits:
    """One caption."""

    words: int
    """Its length."""
    copied: bool | None
    """Whether a training caption has the same words in the same order; None if no training captions are known."""
    repeated_word: bool
    """Whether a word directly follows itself ("a red red ball"); a character that is a word, twice, as many double."""
    repeated_trigram: bool
    """Whether three words in a row occur twice, overlapping or not."""


@dataclass(frozen=True)
class CaptionStatistics:
    """All captions together. Shares are 0 to 1, of the captions unless stated otherwise."""

    mean_length: float
    """Words per caption."""
    distinct: int
    """Captions that differ from each other in their words."""
    words_used: int
    """Words of the vocabulary that occur in a caption; `<unk>` and the other special ones are not counted."""
    vocabulary_share: float
    """`words_used` as a share of the vocabulary, without its special words."""
    copied: float | None
    """Share copied from a training caption; None if no training captions are known."""
    training_images: int
    """Images of the model's train split whose captions are known and were compared."""
    training_images_missing: int
    """Images of the train split whose captions are not known: `copied` is a lower bound if there are any."""
    repeated_word: float
    """Share in which a word directly follows itself."""
    repeated_trigram: float
    """Share in which three words in a row occur twice."""


def find_traits(
    captions: Mapping[str, str], training_captions: Iterable[str], word_rule: int = WORD_RULE
) -> dict[str, CaptionTraits]:
    """The traits of each caption, by key; `training_captions` are plain sentences, empty if not known."""
    known = {tuple(_words(caption, word_rule)) for caption in training_captions}
    return {key: _traits(_words(caption, word_rule), known) for key, caption in captions.items()}


def is_repetitive(caption: str) -> bool:
    """Whether a word directly follows itself, or three words in a row occur twice."""
    traits = _traits(_words(caption), ())
    return traits.repeated_word or traits.repeated_trigram


def describe_captions(
    captions: Mapping[str, str],
    traits: Mapping[str, CaptionTraits],
    vocabulary: Vocabulary,
    *,
    training_images: int,
    training_images_missing: int,
) -> CaptionStatistics:
    """The statistics of at least one caption and its traits, both by key."""
    used = {word for caption in captions.values() for word in _vocabulary_words(caption, vocabulary)}
    copied = [trait.copied for trait in traits.values() if trait.copied is not None]
    return CaptionStatistics(
        mean_length=_mean([trait.words for trait in traits.values()]),
        distinct=len({tuple(_words(caption, vocabulary.word_rule)) for caption in captions.values()}),
        words_used=len(used),
        vocabulary_share=len(used) / max(1, len(vocabulary) - len(SPECIAL_WORDS)),
        copied=_mean(copied) if copied else None,
        training_images=training_images,
        training_images_missing=training_images_missing,
        repeated_word=_mean([trait.repeated_word for trait in traits.values()]),
        repeated_trigram=_mean([trait.repeated_trigram for trait in traits.values()]),
    )


def repeats_word(caption: str) -> bool:
    """Whether a word of a caption follows itself; a character that is a word, twice."""
    return _traits(_words(caption), ()).repeated_word


def _words(caption: str, word_rule: int = WORD_RULE) -> list[str]:
    return " ".join(tokenize(caption, word_rule)).replace(" 's", "'s").split()


def _traits(words: Sequence[str], known: Collection[tuple[str, ...]]) -> CaptionTraits:
    trigrams = [tuple(words[start : start + REPEATED_ORDER]) for start in range(len(words) - REPEATED_ORDER + 1)]
    return CaptionTraits(
        words=len(words),
        copied=tuple(words) in known if known else None,
        repeated_word=any(_is_repeated(words, place) for place in range(1, len(words))),
        repeated_trigram=len(set(trigrams)) < len(trigrams),
    )


def _is_repeated(words: Sequence[str], place: int) -> bool:
    """Whether the word at `place` follows itself; a character that is a word, twice."""
    word = words[place]
    if words[place - 1] != word:
        return False
    return not has_unspaced_script(word) or (place > 1 and words[place - 2] == word)


def _vocabulary_words(caption: str, vocabulary: Vocabulary) -> Iterable[str]:
    """The words that the decoder chose: it may have joined "man" and "'s" to "man's"."""
    for word in tokenize(caption) if has_unspaced_script(caption) else caption.split():
        pieces = [word.removesuffix("'s"), "'s"] if word.endswith("'s") and word not in vocabulary else [word]
        yield from (piece for piece in pieces if piece in vocabulary and piece not in SPECIAL_WORDS)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Quarter:
    """A quarter of the captions, of similar confidence."""

    count: int
    low: float
    """Lowest confidence, 0 to 1."""
    high: float
    """Highest confidence."""
    confidence: float
    """Mean confidence."""
    score: float
    """Mean score, in the unit of the metric."""


def quarter_by_confidence(confidences: Sequence[float], scores: Sequence[float]) -> list[Quarter]:
    """Four parts whose sizes differ by at most one, the least confident first; fewer for fewer than four captions.

    Captions of equal confidence stay in the order given.
    """
    order = np.argsort(confidences, kind="stable")
    sure, worth = np.asarray(confidences, np.float64)[order], np.asarray(scores, np.float64)[order]
    parts = [part for part in np.array_split(np.arange(len(order)), _PARTS) if len(part)]
    return [
        Quarter(
            count=len(part),
            low=float(sure[part[0]]),
            high=float(sure[part[-1]]),
            confidence=float(sure[part].mean()),
            score=float(worth[part].mean()),
        )
        for part in parts
    ]


def rank_correlation(confidences: Sequence[float], scores: Sequence[float]) -> float | None:
    """Spearman's correlation, -1 to 1, with mean ranks for equal values; None if either has only one value."""
    if len(set(confidences)) < 2 or len(set(scores)) < 2:
        return None
    import pandas as pd  # as slow to import as NumPy three times, and not needed to flag a caption

    sure, worth = (pd.Series(list(values), dtype=float).rank() for values in (confidences, scores))
    return float(sure.corr(worth))


@dataclass(frozen=True)
class VocabularyStatistics:
    """How a vocabulary covers captions. Shares are 0 to 1."""

    tokens: int
    """Words of the captions, with repetitions."""
    types: int
    """Different words."""
    types_known: int
    """Different words that have their own index."""
    unknown: float
    """Share of the tokens that the decoder reads as `<unk>`."""
    frequent: tuple[tuple[str, int], ...]
    """The most frequent words with an index, and their counts; the most frequent first, ties by alphabet."""


def describe_vocabulary(
    vocabulary: Vocabulary, captions: Iterable[str], *, most_frequent: int = 30
) -> VocabularyStatistics:
    """How `vocabulary` covers `captions`, plain sentences; all values are 0 without captions."""
    counts = WordCounts.of(captions, vocabulary.word_rule).words
    known = {word: count for word, count in counts.items() if word in vocabulary}
    tokens = counts.total()
    return VocabularyStatistics(
        tokens=tokens,
        types=len(counts),
        types_known=len(known),
        unknown=1 - sum(known.values()) / tokens if tokens else 0.0,
        frequent=tuple(sorted(known.items(), key=lambda item: (-item[1], item[0]))[:most_frequent]),
    )
