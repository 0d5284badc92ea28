"""Lines of a list of images that hold more than a path: quotes, a label, a checksum, a comment, old line ends.

Each such line would be one image that is not there. One hint says what is wrong with all of them.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.errors import InputError
from captionmill.data.paths import AnyPath, as_location

_NAME = r".*?\.[A-Za-z][A-Za-z0-9]{2,4}"  # up to the first suffix
_ENDS_LIKE_A_FILE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,4}$")
_QUOTED = re.compile(r"""(?P<quote>["'`])(?P<name>.+?)(?P=quote)(?P<label>.*)""")
_IN_CURLY_QUOTES = re.compile(r"[“„‘‚«](?P<name>.+?)[”“’‘»](?P<label>.*)")
_CHECKSUM = r"[0-9a-f]{32,128}"
_FIRST = "a number or a bullet and a path"
_CAPTION_NUMBER = re.compile(r"#\d+$")  # as in a token file: a.jpg#0
_PATTERNS = (  # in time that grows as the line does
    ("a checksum and a path, as md5sum writes them", re.compile(rf"\\?{_CHECKSUM} [ *](?P<name>.+)")),
    ("a checksum and a path, as md5sum writes them", re.compile(rf"[A-Z]\S* \((?P<name>.+)\) = {_CHECKSUM}")),
    ("a path and a label", re.compile(rf"(?P<name>{_NAME})[\s,;|].*")),
    ("a JSON object", re.compile(r'\{"(?P<name>).*')),
    (_FIRST, re.compile(rf"(?:[-*•]|\d++[.):]?)(?:\s*+[,;|]\s*+|\s++)(?P<name>{_NAME})")),
)
_ONLY = "a list has one path per line and nothing else"
EXPECTED = "expected a folder of images, a .tar, or a UTF-8 text file with one image path per line"


@dataclass(frozen=True)
class ListedImages:
    """Images named one by one: relative paths start at the current folder, and each name is the image's key."""

    names: tuple[str, ...]
    """Images, tars, folders and URLs."""
    origin: str
    """Where they are named, for messages."""
    is_list: bool = False
    """Whether the names are lines, which may hold more than a path by mistake."""

    def __str__(self) -> str:
        return self.origin

    @classmethod
    def of_lines(cls, content: bytes, origin: str) -> "ListedImages":
        """The images that the lines of `content` name; InputError if it is not text in UTF-8."""
        return cls(tuple(lines_of(content, origin)), origin, is_list=True)


ImagesOf = AnyPath | Iterable[AnyPath] | ListedImages
"""Images as a caller gives them: a folder, a list, a tar, a URL, or several images."""


def as_images(images: ImagesOf) -> AnyPath | ListedImages:
    """`images` as a search takes them."""
    if isinstance(images, ListedImages):
        return images
    if isinstance(images, Path | str):
        return as_location(images)
    names = tuple(map(str, images))
    others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return ListedImages(names, f"{names[0] if names else 'no image'}{others}")


def lines_of(content: bytes, origin: str) -> list[str]:
    """The lines of a list, without spaces around them; InputError if `content` is not text in UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"{origin}: not UTF-8 text; {EXPECTED}") from exc
    if "\0" in text:
        raise InputError(f"{origin}: not text; {EXPECTED}")
    return [line.strip() for line in text.split("\n")]


def find_misread(lines: Sequence[str], is_image: Callable[[str], bool]) -> str:
    """What is wrong with the first of the `lines` that holds more than a path; "" if no line does.

    A line is accepted if all of it is an image (`is_image`). One that only looks like a path and more counts if what
    it holds is an image, or if it is a comment, or if half of all lines are like it: a single image that is not there
    must not end a run.
    """
    first, doubtful_count = "", 0
    for number, line in enumerate(lines, 1):
        found = _misread(line)
        if found is None or is_image(line):
            continue
        what, name = found
        hint = f"line {number} is {_shorten(line)}: {what}; {_ONLY}"
        if not name or (is_image(name) and not _is_one_name(line)):
            return hint
        if what == _FIRST and not is_image(name):  # `1 a.jpg` is a good name, too
            continue
        first = first or hint
        doubtful_count += 1
    return first if doubtful_count * 2 >= sum(bool(line) for line in lines) else ""


def _misread(line: str) -> tuple[str, str] | None:
    """What the line looks like if it holds more than a path, and the path in it, "" for none."""
    if "\r" in line:
        name = line.partition("\r")[0].rstrip()
        return "lines that end in carriage returns only, which must be line feeds", name
    if line.startswith("#"):
        name = line.lstrip("#").strip()
        return "a comment", name if _ENDS_LIKE_A_FILE.search(name) else ""
    if quoted := _QUOTED.fullmatch(line) or _IN_CURLY_QUOTES.fullmatch(line):
        return ("a path in quotes" if not quoted["label"] else "a path in quotes and more"), quoted["name"]
    if "\t" in line:
        return "a path, a tab and more, as in a file of captions", _CAPTION_NUMBER.sub(
            "", line.partition("\t")[0].rstrip()
        )
    found = ((what, match["name"]) for what, pattern in _PATTERNS if (match := pattern.fullmatch(line)))
    return next(found, None)


def _is_one_name(line: str) -> bool:
    """Whether the line, such as `a.jpg (copy).jpg`, may be the name of an image that is not there."""
    return _ENDS_LIKE_A_FILE.search(line) is not None and not set("\t\r") & set(line) and not line.startswith("#")


def _shorten(line: str) -> str:
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
