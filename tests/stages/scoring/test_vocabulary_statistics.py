"""What a vocabulary covers of captions."""

from captionmill.data.captions.vocabulary import Vocabulary
from captionmill.stages.scoring.statistics import VocabularyStatistics, describe_vocabulary

CAPTIONS = ["A dog runs.", "a dog sleeps", "The cat"]


def test_words_with_and_without_an_index_are_counted() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    found = describe_vocabulary(vocabulary, CAPTIONS)
    assert found == VocabularyStatistics(8, 6, 2, 0.5, (("a", 2), ("dog", 2)))


def test_only_so_many_frequent_words_are_named() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    assert describe_vocabulary(vocabulary, CAPTIONS, most_frequent=3).frequent == (("a", 2), ("dog", 2), ("cat", 1))


def test_no_captions_leave_nothing_to_count() -> None:
    assert describe_vocabulary(Vocabulary.build([], min_count=1), []) == VocabularyStatistics(0, 0, 0, 0.0, ())
