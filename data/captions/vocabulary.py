"""The vocabulary: every word of the training captions gets one index; 0 to 3 are `<pad> <start> <end> <unk>`."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

PAD, START, END, UNK = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unk>")

_MARKS = "".join(chr(code) for code in range(0x300, 0x1E00) if unicodedata.category(chr(code)).startswith("M"))
_LETTERS = rf"[^\W_](?:[^\W_]|[{_MARKS}])*"  # vowel signs belong to their letter, as in Hindi, Thai or Arabic
_WORD = re.compile(rf"{_LETTERS}(?:[-']{_LETTERS})*|(?<=\s)'s(?!\w)")  # t-shirt and man's are one word; so is a lone 's


def tokenize(caption: str) -> list[str]:
    """The words of a caption: lower case, without punctuation except inside a word ("t-shirt", "man's")."""
    return _WORD.findall(caption.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


class Vocabulary:
    """Words and their indices, fixed once built."""

    def __init__(self, words: Sequence[str]) -> None:
        """`words` in the order of their indices, the four special ones first, no word twice; ValueError otherwise."""
        if tuple(words[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
            raise ValueError(f"a vocabulary starts with {' '.join(SPECIAL_WORDS)}, not {' '.join(words[:4])}")
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a vocabulary holds only words")
        self.words = tuple(words)
        self._indices = {word: index for index, word in enumerate(self.words)}
        if len(self._indices) != len(self.words):
            raise ValueError("a vocabulary holds each word once")

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int) -> "Vocabulary":
        """The words that occur at least `min_count` times in `captions`, the most frequent first, ties by alphabet."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = sorted(
            (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
        )
        return cls([*SPECIAL_WORDS, *kept])

    def __len__(self) -> int:
        """Number of words, including the special ones."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether `word` has its own index."""
        return word in self._indices

    def index(self, word: str) -> int:
        """The index of `word`, or that of `<unk>` if it has none."""
        return self._indices.get(word, UNK)

    def encode(self, caption: str) -> list[int]:
        """The indices of a caption's words, without `<start>` and `<end>`."""
        return [self.index(word) for word in tokenize(caption)]

    def decode(self, indices: Iterable[int]) -> str:
        """The caption of word indices; a separate "'s" is joined to the word before it."""
        return " ".join(self.words[index] for index in indices).replace(" 's", "'s")
