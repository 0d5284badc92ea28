"""The training captions: their vocabulary, what their number and lengths decide, and what to report of them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from captionmill.data.captions.vocabulary import SPECIAL_WORDS, Vocabulary, WordCounts
from captionmill.data.captions.words import WORD_RULE, has_unspaced_script
from captionmill.data.errors import TrainingError
from captionmill.stages.scoring.collapse import describe_unknown_words
from captionmill.stages.settings import USUAL_LENGTH, TrainConfig

MOST_CUT = 0.02
"""Share of the training captions that the default length cuts at most; of Flickr8k's, 20 words cut 1.5 %."""
FEW_IMAGES, FEW_WORDS = 1000, 200
LARGE_NETWORK = 512
"""Numbers of the hidden state from which so few images or words are worth a note."""
_MANY_CAPTIONS = 30_000  # for so many the minimum of epochs is enough; a quarter of them needs twice as many epochs
_LEAST_PATIENCE = 3  # epochs
_LEAST_EPOCHS, _MOST_EPOCHS = 6, 100
_MOST_EPOCHS_FROM_MODEL = 10  # in more it forgets what it knew of images that the few captions do not show
_LONGEST_DEFAULT = 100  # words, since the memory and time of a step grow with its longest caption


def count_words(captions: Mapping[str, Sequence[str]], keys: Sequence[str], word_rule: int = WORD_RULE) -> WordCounts:
    """The words of the captions of the images `keys`."""
    return WordCounts.of((caption for key in keys for caption in captions[key]), word_rule)


def choose_vocabulary(counts: WordCounts, *, min_count: int, known: Vocabulary | None = None) -> Vocabulary:
    """The words that occur `min_count` times in the training captions, behind those that are `known`.

    TrainingError if there is no word at all.
    """
    if known is not None:
        return known.extended(counts, min_count=min_count)
    vocabulary = Vocabulary.of(counts, min_count=min_count)
    if len(vocabulary) == len(SPECIAL_WORDS):
        if not counts.words:
            raise TrainingError("the training captions contain no words")
        raise TrainingError(f"no word occurs {min_count} times in the training captions; pass a lower `min_count`")
    return vocabulary


def fit_length(lengths: Counter[int]) -> int:
    """The default of `max_length` for captions of these numbers of words: 20, or more if 20 cuts over 2 %; 100 at most.

    It is the least number of words that cuts at most 2 % of the captions.
    """
    total, longer = lengths.total(), 0
    fitting = USUAL_LENGTH
    for length in sorted(lengths, reverse=True):
        longer += lengths[length]
        if longer > MOST_CUT * total:
            fitting = length
            break
    return min(max(fitting, USUAL_LENGTH), _LONGEST_DEFAULT)


def with_lengths(config: TrainConfig, counts: WordCounts) -> TrainConfig:
    """`config` with the lengths that it leaves open: those of the training captions."""
    length = config.max_length or fit_length(counts.lengths)
    search = config.search
    return replace(config, max_length=length, search=replace(search, max_length=search.max_length or length))


def choose_epochs(config: TrainConfig, captions: int) -> tuple[int, int]:
    """`max_epochs` and `patience`; values that `config` leaves open are chosen by the number of captions."""
    most = _MOST_EPOCHS if config.init is None else _MOST_EPOCHS_FROM_MODEL
    epochs = config.max_epochs or fit_epochs(captions, _LEAST_EPOCHS, most)
    return epochs, config.patience or max(_LEAST_PATIENCE, epochs // 2)


def fit_epochs(captions: int, least: int, most: int) -> int:
    """From `least` to `most` epochs, more of them the fewer captions there are, since an epoch has fewer steps then.

    Source: measured on parts of Flickr8k (docs/benchmarks.md).
    """
    return min(max(round(least * math.sqrt(_MANY_CAPTIONS / max(captions, 1))), least), most)


def describe_words(
    counts: WordCounts, val_counts: WordCounts, vocabulary: Vocabulary, config: TrainConfig
) -> list[str]:
    """One line for each thing that a person should know of the training captions; `config` as from `with_lengths`.

    Of the validation captions, with `val_counts`, only that many of their words are unknown where training has them.
    """
    notes = []
    length, total = config.max_length or USUAL_LENGTH, counts.lengths.total()
    if cut := counts.count_longer(length):
        notes.append(
            f"{cut:,} of {total:,} training captions ({cut / total:.1%}) are longer than {length} words and are cut, "
            f"without an end to learn; pass `max_length` {max(counts.lengths)} to cut none"
        )
    if counts.word_rule == WORD_RULE and any(has_unspaced_script(word) for word in vocabulary.words):
        notes.append(
            "captions in a script without spaces between words: each of its characters counts as a word, in training, "
            "in lengths and in scores"
        )
    unknown = 1 - counts.covered(vocabulary)
    advice = f"pass a `min_count` below {config.min_count}, or give it more captions"
    flood = describe_unknown_words(unknown, "the training captions", advice)
    if not flood:
        unknown = 1 - val_counts.covered(vocabulary)
        rarer = f", or with a `min_count` below {config.min_count}" if config.min_count > 1 else ""
        advice = f"train on captions like these{rarer}"
        flood = describe_unknown_words(unknown, "the validation captions", advice)
    return [*notes, *flood]


def describe_size(images: int, vocabulary: Vocabulary, config: TrainConfig) -> list[str]:
    """A line if the images or the words are few for a network of the size of `config`, with the settings that help.

    A network that starts from a model, or a small one, needs no more. Source: trainings on 100, 300 and 600 images of
    Flickr8k (docs/benchmarks.md).
    """
    words = len(vocabulary) - len(SPECIAL_WORDS)
    few = [f"{images:,} training images"] * (images < FEW_IMAGES) + [f"{words:,} words"] * (words < FEW_WORDS)
    if not few or config.init is not None or config.hidden_dim < LARGE_NETWORK:
        return []
    advice = "starting from a model of similar captions with `init` helps"
    others = "a smaller network or smaller batches do not, nor do the rarer words of a lower `min_count`"
    return [f"{' and '.join(few)} are few for a network of {config.hidden_dim}: {advice}; {others}"]
