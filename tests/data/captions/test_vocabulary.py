"""Words, their indices, and captions there and back."""

import pytest

from captionmill.data.captions.vocabulary import END, PAD, START, UNK, Vocabulary
from captionmill.data.captions.words import tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Dog runs .", ["a", "dog", "runs"]),
        ('Two men, in "red" T-shirts!', ["two", "men", "in", "red", "t-shirts"]),
        ("a man's hat; it isn\N{RIGHT SINGLE QUOTATION MARK}t blue", ["a", "man's", "hat", "it", "isn't", "blue"]),
        ("a man 's hat", ["a", "man", "'s", "hat"]),
        ("Ein Mädchen läuft - schnell", ["ein", "mädchen", "läuft", "schnell"]),
        ("3 dogs_and 2 cats", ["3", "dogs", "and", "2", "cats"]),
        ("एक हिन्दी कुत्ता, दौड़ता है", ["एक", "हिन्दी", "कुत्ता", "दौड़ता", "है"]),
        ("สุนัข วิ่ง", ["สุ", "นั", "ข", "วิ่", "ง"]),
        ("...", []),
    ],
)
def test_captions_are_lower_cased_and_lose_their_punctuation(caption: str, words: list[str]) -> None:
    assert tokenize(caption) == words


def test_words_are_indexed_by_frequency_after_the_four_special_ones() -> None:
    vocabulary = Vocabulary.build(["a tree", "a dog", "a tree here"], min_count=2)
    assert vocabulary.words == ("<pad>", "<start>", "<end>", "<unk>", "a", "tree")
    assert (PAD, START, END, UNK) == (0, 1, 2, 3)
    assert vocabulary.index("tree") == 5
    assert vocabulary.encode("A tree, a cat.") == [4, 5, 4, UNK]
    assert vocabulary.decode([4, 5]) == "a tree"
    assert "cat" not in vocabulary


def test_a_special_word_in_a_caption_is_not_the_special_index() -> None:
    vocabulary = Vocabulary.build(["a pad start end"], min_count=1)
    assert vocabulary.encode("<pad> <start> <end>") == [vocabulary.index("pad"), vocabulary.index("start"), 5]


def test_a_lone_genitive_joins_the_word_before_it() -> None:
    vocabulary = Vocabulary.build(["a man 's hat"], min_count=1)
    assert vocabulary.decode(vocabulary.encode("a man 's hat")) == "a man's hat"


@pytest.mark.parametrize("words", [["a", "b"], ["<pad>", "<start>", "<end>", "<unk>", "a", "a"]])
def test_a_list_that_is_no_vocabulary_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="a vocabulary"):
        Vocabulary(words)
