"""The vocabulary: every word of the training captions gets one index; 0 to 3 are `<pad> <start> <end> <unk>`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from captionmill.data.captions.words import FIRST_RULE, WORD_RULE, join_words, tokenize

PAD, START, END, UNK = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class WordCounts:
    """The words of some captions."""

    words: Counter[str]
    """How often each word occurs."""
    lengths: Counter[int]
    """How many captions have each number of words; captions without words are not counted."""
    word_rule: int

    @classmethod
    def of(cls, captions: Iterable[str], word_rule: int = WORD_RULE) -> "WordCounts":
        """Count the words of `captions`."""
        words: Counter[str] = Counter()
        lengths: Counter[int] = Counter()
        for caption in captions:
            found = tokenize(caption, word_rule)
            words.update(found)
            lengths[len(found)] += 1
        del lengths[0]
        return cls(words, lengths, word_rule)

    def covered(self, vocabulary: "Vocabulary") -> float:
        """The share of all words, with repetitions, that have an index in `vocabulary`; 1 without words."""
        total = self.words.total()
        return sum(count for word, count in self.words.items() if word in vocabulary) / total if total else 1.0

    def count_longer(self, length: int) -> int:
        """The number of captions with more than `length` words."""
        return sum(count for words, count in self.lengths.items() if words > length)


class Vocabulary:
    """Words and their indices, fixed once built."""

    def __init__(self, words: Sequence[str], word_rule: int = WORD_RULE) -> None:
        """`words` in the order of their indices, the four special ones first, no word twice; ValueError otherwise.

        `word_rule` is how they were found in captions (`words`).
        """
        if tuple(words[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
            raise ValueError(f"a vocabulary starts with {' '.join(SPECIAL_WORDS)}, not {' '.join(words[:4])}")
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a vocabulary holds only words")
        if word_rule not in (FIRST_RULE, WORD_RULE):
            raise ValueError(f"word rule {word_rule} is not known to this version")
        self.words, self.word_rule = tuple(words), word_rule
        self._indices = {word: index for index, word in enumerate(self.words)}
        if len(self._indices) != len(self.words):
            raise ValueError("a vocabulary holds each word once")

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int) -> "Vocabulary":
        """The words that occur at least `min_count` times in `captions`, the most frequent first, ties by alphabet."""
        return cls.of(WordCounts.of(captions), min_count=min_count)

    @classmethod
    def of(cls, counts: WordCounts, *, min_count: int) -> "Vocabulary":
        """The words that `counts` has at least `min_count` times, the most frequent first, ties by alphabet."""
        kept = [word for word, count in counts.words.items() if count >= min_count]
        kept.sort(key=lambda word: (-counts.words[word], word))
        return cls([*SPECIAL_WORDS, *kept], counts.word_rule)

    def extended(self, counts: WordCounts, *, min_count: int) -> "Vocabulary":
        """These words with their indices, and behind them the others that `counts` has at least `min_count` times."""
        added = [word for word in Vocabulary.of(counts, min_count=min_count).words if word not in self]
        return Vocabulary([*self.words, *added], self.word_rule)

    def __len__(self) -> int:
        """Number of words, including the special ones."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether `word` has its own index."""
        return word in self._indices

    def index(self, word: str) -> int:
        """The index of `word`, or that of `<unk>` if it has none."""
        return self._indices.get(word, UNK)

    def tokenize(self, caption: str) -> list[str]:
        """The words of a caption, whether they have an index or not."""
        return tokenize(caption, self.word_rule)

    def encode(self, caption: str) -> list[int]:
        """The indices of a caption's words, without `<start>` and `<end>`."""
        return [self.index(word) for word in self.tokenize(caption)]

    def decode(self, indices: Iterable[int]) -> str:
        """The caption of word indices, as `join_words` writes it."""
        return join_words([self.words[index] for index in indices], self.word_rule)
