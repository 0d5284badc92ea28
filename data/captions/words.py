"""The words of a caption: how they are found in its text, and how they are written as text again.

Where a script puts no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each character is a word,
together with the vowel signs and tone marks above, below and behind it. A model records the number of the rule that it
was made with: rule 1 is that of versions that did not segment such scripts, decoded no HTML entities and split numbers
and words at points, commas, soft hyphens and joiners. For any other caption both rules find the same words.
"""

import html
import html.entities
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

FIRST_RULE: Final = 1
WORD_RULE: Final = 2
"""The rule of new models."""

_MARK_RANGES = ((0x300, 0x1E00), (0x302A, 0x3030), (0x3099, 0x309B), (0xA66F, 0xAC00))
_EAST_ASIAN_RANGES = (
    *((0x2E80, 0x2FD6), (0x3005, 0x3008), (0x3021, 0x302A), (0x3031, 0x3036), (0x3038, 0x303D), (0x3041, 0x3097)),
    *((0x309D, 0x30FB), (0x30FC, 0x3130), (0x31A0, 0x31C0), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000)),
    *((0xF900, 0xFB00), (0xFF66, 0xFF9E), (0x1B000, 0x1B170), (0x20000, 0x323B0)),
)
_SOUTH_EAST_ASIAN_RANGES = (
    *((0xE00, 0xE80), (0xE80, 0xF00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x1950, 0x19E0), (0x1A20, 0x1AB0)),
    *((0xA9E0, 0xAA00), (0xAA60, 0xAA80), (0xAA80, 0xAAE0)),
)


def _pattern(ranges: Iterable[tuple[int, int]], kind: str = "") -> str:
    """The inside of a character class: the characters in `ranges`, only those of one Unicode category if `kind`."""
    runs: list[list[int]] = []
    for start, end in ranges:
        for code in range(start, end) if kind else ():
            if unicodedata.category(chr(code))[0] == kind:
                if runs and runs[-1][1] == code - 1:
                    runs[-1][1] = code
                else:
                    runs.append([code, code])
        runs += [] if kind else [[start, end - 1]]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


_STACKED = "[\N{KHMER SIGN COENG}\N{MYANMAR SIGN VIRAMA}]"  # the next consonant stands below the one before
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
_JOINING = "\u0600-\u0dff\ufb50-\ufdff\ufe70-\ufefc"  # Arabic and Indic letters, which a joiner shapes
_GENITIVE = r"(?<=\s)'s(?!\w)"  # a lone 's


class _Patterns:
    """What finds words; each made when it is first used, for together they take a twentieth of a second."""

    @cached_property
    def old_word(self) -> re.Pattern[str]:
        """A word by rule 1."""
        marks = _pattern([(0x300, 0x1E00)], "M")
        letters = rf"[^\W_](?:[^\W_]|[{marks}])*"  # vowel signs belong to their letter, as in Hindi, Thai or Arabic
        return re.compile(rf"{letters}(?:[-']{letters})*|{_GENITIVE}")  # t-shirt and man's are one word

    @cached_property
    def spaced_word(self) -> re.Pattern[str]:
        """A word of a script with spaces."""
        return re.compile(self._word(r"[^\W_]"))

    @cached_property
    def mixed_word(self) -> re.Pattern[str]:
        """A word of any script."""
        letter = rf"(?:(?![{self._unspaced}])[^\W_])"
        return re.compile(f"{self._cluster}|{self._word(letter)}")

    @cached_property
    def unspaced(self) -> re.Pattern[str]:
        """A character of a script without spaces."""
        return re.compile(f"[{self._unspaced}]")

    @cached_property
    def clusters(self) -> re.Pattern[str]:
        """A word of a script without spaces, as a group."""
        return re.compile(f"({self._cluster})")

    @cached_property
    def silent(self) -> dict[int, str]:
        """A space for each sign of punctuation of scripts without spaces, fullwidth included."""
        return {
            code: " "
            for start, end in (*_SOUTH_EAST_ASIAN_RANGES, (0x3000, 0x3100), (0xFF00, 0xFF66))
            for code in range(start, end)
            if unicodedata.category(chr(code))[0] in "PZS"
        }

    @cached_property
    def _marks(self) -> str:
        return _pattern(_MARK_RANGES, "M") + "\uff9e\uff9f"  # the voice marks of halfwidth katakana

    @cached_property
    def _unspaced(self) -> str:
        return _EAST_ASIAN + _pattern(_SOUTH_EAST_ASIAN_RANGES, "L")

    @cached_property
    def _cluster(self) -> str:
        behind = self._marks + "\N{THAI CHARACTER SARA AM}\N{LAO VOWEL SIGN AM}"
        return rf"[{self._unspaced}](?:{_STACKED}[{self._unspaced}]|[{behind}])*"

    def _word(self, letter: str) -> str:
        """Words of `letter`: t-shirt, man's, 3.5 and 1,000 are one word each."""
        letters = rf"{letter}(?:{letter}|[{self._marks}{_JOINERS}])*"
        return rf"{letters}(?:(?:[-']|(?<=\d)[.,٫٬](?=\d)){letters})*|{_GENITIVE}"


_EAST_ASIAN = _pattern(_EAST_ASIAN_RANGES)
_PATTERNS = _Patterns()
_IS_EAST_ASIAN = re.compile(f"[{_EAST_ASIAN}]")
_IS_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
_ENTITY = re.compile(r"&(#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,30};|(?:amp|quot|nbsp|#39|#34)(?!\w))")
_DROPPED = re.compile("[\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe00-\ufe0f\ufeff]")
_LOOSE_JOINER = re.compile(f"(?<![{_JOINING}])[{_JOINERS}]|[{_JOINERS}](?![{_JOINING}])")
_JOINER = re.compile(f"[{_JOINERS}]")
_MOST_NESTED = 3  # &amp;quot; is the entity of an entity


def tokenize(caption: str, word_rule: int = WORD_RULE) -> list[str]:
    """The words of a caption: lower case, without punctuation except inside a word ("t-shirt", "man's", "3.5")."""
    if word_rule == FIRST_RULE:
        return _PATTERNS.old_word.findall(_straight(caption.lower()))
    text = _straight(_clean(caption).lower())
    return (_PATTERNS.mixed_word if has_unspaced_script(text) else _PATTERNS.spaced_word).findall(text)


def has_words(caption: str) -> bool:
    """Whether a caption has a word, by the rule of new models."""
    return _PATTERNS.spaced_word.search(_clean(caption)) is not None


def has_unspaced_script(text: str) -> bool:
    """Whether a character of `text` is of a script that puts no spaces between words."""
    return not text.isascii() and _PATTERNS.unspaced.search(text) is not None


def join_words(words: Sequence[str], word_rule: int = WORD_RULE) -> str:
    """The caption of `words`, as a person would write it: a separate "'s" is joined to the word before it.

    Chinese and Japanese characters have no space on either side, except next to a Korean word; Thai, Lao, Khmer and
    Burmese ones have none between each other.
    """
    text = " ".join(words)
    if word_rule == FIRST_RULE or not has_unspaced_script(text):
        return text.replace(" 's", "'s")
    return "".join(_with_gaps(words)).replace(" 's", "'s")


def decode_entities(text: str) -> str:
    """`text` with its HTML entities as characters: `&quot;` and `&#39;`, also where they were encoded twice."""
    for _ in range(_MOST_NESTED):
        if "&" not in text:
            break
        text = _ENTITY.sub(_decode_entity, text)
    return text


def split_for_scores(caption: str) -> Iterator[tuple[str, bool]]:
    """The parts of a caption, and whether a part is one character of a script without spaces, a word by itself.

    The other parts are text to be tokenized as it is in English. Punctuation of scripts without spaces is left out.
    """
    text = _JOINER.sub("", _clean(caption))
    if not has_unspaced_script(text):
        yield text, False
        return
    for number, part in enumerate(_PATTERNS.clusters.split(text.translate(_PATTERNS.silent))):
        yield part, number % 2 == 1


def _clean(caption: str) -> str:
    """`caption` with entities decoded and without signs that only shape or break words."""
    text = decode_entities(caption)
    return text if text.isascii() else _LOOSE_JOINER.sub("", _DROPPED.sub("", text))


def _straight(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def _decode_entity(match: re.Match[str]) -> str:
    name = match[1]
    if name.startswith("#"):
        return html.unescape(match[0])
    return html.entities.html5.get(name, html.entities.html5.get(f"{name};", match[0]))


def _with_gaps(words: Sequence[str]) -> Iterator[str]:
    before = ""
    for word in words:
        if before and not _touch(before, word):
            yield " "
        yield word
        before = word


def _touch(left: str, right: str) -> bool:
    """Whether no space is written between two words."""
    east_asian = [_IS_EAST_ASIAN.match(word) is not None for word in (left, right)]
    if any(east_asian):
        return all(east_asian) or not any(map(_IS_HANGUL.match, (left, right)))
    return all(map(_PATTERNS.unspaced.match, (left, right)))
