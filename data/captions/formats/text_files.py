"""Captions in text files beside their images, one caption per line: photo.jpg, photo.txt."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from captionmill.data.captions.formats.rows import LeftOut, ReferenceRow
from captionmill.data.errors import AnnotationError
from captionmill.data.images.formats.kinds import IMAGE_SUFFIXES
from captionmill.data.images.walk import walk_folder
from captionmill.data.regular import read_text

_SUFFIX = ".txt"
_METADATA = "metadata.jsonl"  # Hugging Face's imagefolder
_SHARE = r"\s+(?:[01]?\.\d+|[01]|\d(?:\.\d+)?e-\d+)"  # of the width or the height of an image
_LABEL = re.compile(rf"\s*\d++(?=.*\.\d)(?:{_SHARE}){{4}}(?:\s+[-+.e\d]+)*\s*")  # the number of a class, and a box
_LINE_ENDS = re.compile(r"\r\n|\r|\n")  # str.splitlines ends lines at U+2028 and others, too


def find_text_files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The text files in `folder` and below it, in order, and the images there by their path without suffix (NFC).

    AnnotationError if there are no text files.
    """
    texts: list[Path] = []
    images: dict[str, list[Path]] = defaultdict(list)
    try:
        for entry, error in walk_folder(folder):
            path = Path(entry.path)
            if error is None and path.suffix.lower() == _SUFFIX:
                texts.append(path)
            elif error is None and path.suffix.lower() in IMAGE_SUFFIXES:
                images[_composed_path(path.with_suffix(""))].append(path)
    except OSError as exc:
        raise AnnotationError(f"cannot be listed ({exc.strerror}); make the folder readable") from exc
    if not texts and (folder / _METADATA).is_file():
        raise AnnotationError(f"a folder without .txt files; give its {_METADATA}")
    if not texts:
        raise AnnotationError("a folder without captions: it has no .txt files beside its images")
    return texts, images


def read_text_files(folder: Path, left_out: LeftOut, known_keys: Collection[str]) -> Iterator[ReferenceRow]:
    """The captions in the text files of `folder`; the key of an image is its path below it.

    `a.txt` belongs to a.jpg, a.png and so on beside it, and `a.jpg.txt` to a.jpg; where no image is beside it, to the
    image of `known_keys` in the same place. Text files of no image are counted. AnnotationError at once if there are no
    text files; later if one is not UTF-8 or holds labels, or if none belongs to an image.
    """
    return _rows_of_folder(folder, *find_text_files(folder), left_out, known_keys)


def _rows_of_folder(
    folder: Path, texts: list[Path], images: dict[str, list[Path]], left_out: LeftOut, known_keys: Collection[str]
) -> Iterator[ReferenceRow]:
    known, stems = set(known_keys), _by_stem(known_keys)
    stranger_count = 0
    for path in texts:
        stem = path.with_suffix("")
        whole = [
            image
            for image in images[_composed_path(stem.with_suffix(""))]
            if _composed_path(image) == _composed_path(stem)
        ]
        name = stem.relative_to(folder).as_posix()
        beside = {image.relative_to(folder).as_posix(): image for image in whole or images[_composed_path(stem)]}
        keys = [*beside] or ([name] if name in known else stems.get(name, []))
        stranger_count += not keys
        lines = _read_lines(path) if keys else []
        for key in keys:
            for line in lines or [""]:
                yield ReferenceRow(f"file {path.relative_to(folder)}", key, line, file=beside.get(key))
    if stranger_count == len(texts):
        raise AnnotationError(
            f"none of the {stranger_count} .txt files in this folder is called like an image beside it"
        )
    left_out["text files of no image"] += stranger_count


def _composed_path(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path))


def _read_lines(path: Path) -> list[str]:
    try:
        text = read_text(path, "utf-8-sig")
    except UnicodeDecodeError as exc:
        raise AnnotationError(f"{path.name} is not UTF-8 text; save it as UTF-8 and try again") from exc
    except OSError as exc:
        raise AnnotationError(f"{path.name} cannot be read ({exc.strerror})") from exc
    lines = [line for line in _LINE_ENDS.split(text) if line.strip()]
    if lines and all(map(_LABEL.fullmatch, lines)):
        raise AnnotationError(
            f"{path.name} has boxes or outlines of objects, as YOLO's labels are, and no caption: {lines[0][:60]!r}"
        )
    return lines


def _by_stem(keys: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        found[PurePosixPath(key).with_suffix("").as_posix()].append(key)
    return found
