import pytest

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary
from captionmill.stages.scoring.statistics import CaptionStatistics, CaptionTraits, describe_captions, find_traits

CAPTIONS = {
    "1.jpg": "a dog runs",
    "2.jpg": "a red red ball",
    "3.jpg": "a man in a hat and a man in a hat",
    "4.jpg": "a dog runs",
    "5.jpg": "",
}
TRAINING = ["A dog runs.", "A ball, red"]
WORDS = ["a", "dog", "runs", "red", "ball", "man", "in", "hat", "and", "cat", "sits", "on"]
VOCABULARY = Vocabulary([*SPECIAL_WORDS, *WORDS])


def test_traits_of_each_caption() -> None:
    assert find_traits(CAPTIONS, TRAINING) == {
        "1.jpg": CaptionTraits(words=3, copied=True, repeated_word=False, repeated_trigram=False),
        "2.jpg": CaptionTraits(words=4, copied=False, repeated_word=True, repeated_trigram=False),
        "3.jpg": CaptionTraits(words=11, copied=False, repeated_word=False, repeated_trigram=True),
        "4.jpg": CaptionTraits(words=3, copied=True, repeated_word=False, repeated_trigram=False),
        "5.jpg": CaptionTraits(words=0, copied=False, repeated_word=False, repeated_trigram=False),
    }


def test_a_word_three_times_is_no_repeated_trigram_and_four_times_is() -> None:
    traits = find_traits({"three": "red red red", "four": "red red red red"}, [])
    assert [trait.repeated_trigram for trait in traits.values()] == [False, True]


def test_copied_compares_words_not_their_spelling_in_the_file() -> None:
    captions = {"1": "a man's hat", "2": "a man's"}
    assert [trait.copied for trait in find_traits(captions, ["A man 's hat !"]).values()] == [True, False]


def test_without_training_captions_copied_is_not_known() -> None:
    traits = find_traits(CAPTIONS, [])
    assert {trait.copied for trait in traits.values()} == {None}
    described = describe_captions(CAPTIONS, traits, VOCABULARY, training_images=0, training_images_missing=9)
    assert described.copied is None


def test_statistics_of_all_captions() -> None:
    traits = find_traits(CAPTIONS, TRAINING)
    assert describe_captions(
        CAPTIONS, traits, VOCABULARY, training_images=2, training_images_missing=1
    ) == CaptionStatistics(
        mean_length=21 / 5,
        distinct=4,
        words_used=9,  # a dog runs red ball man in hat and
        vocabulary_share=9 / 12,
        copied=2 / 5,
        training_images=2,
        training_images_missing=1,
        repeated_word=1 / 5,
        repeated_trigram=1 / 5,
    )


@pytest.mark.parametrize(("words", "used"), [(["man", "'s"], 2), (["man's"], 1), (["man's", "man", "'s"], 1)])
def test_a_joined_s_counts_as_the_words_it_was_made_of_and_unknown_words_do_not(words: list[str], used: int) -> None:
    captions = {"1": "man's <unk>"}
    described = describe_captions(
        captions,
        find_traits(captions, []),
        Vocabulary([*SPECIAL_WORDS, *words]),
        training_images=0,
        training_images_missing=0,
    )
    assert described.words_used == used
