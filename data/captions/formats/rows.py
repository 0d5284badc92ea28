"""What every layout is read into: one row per caption; and the names of the columns or fields that hold them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionmill.data.errors import AnnotationError

FORMATS = (
    "a Flickr token file (name.jpg#0<TAB>caption), COCO captions JSON, Karpathy JSON, JSON lines or Parquet with image "
    "and caption, a folder of .txt files beside the images, or CSV or TSV with the columns image and caption"
)
OWN_IMAGE_COLUMN = "path"  # in a table that `caption` wrote
_IMAGE_NAMES = ("image", "image_name", "file_name", "filename", OWN_IMAGE_COLUMN)  # Flickr30k, Hugging Face, our own
_CAPTION_NAMES = ("caption", "comment", "text")
REJECTED = ("is_rejected", "is_precanned")  # fields of VizWiz's annotations, and columns of tables made from them

LeftOut = Counter[str]
"""What a reader leaves out, such as "captions without text", and how many."""


@dataclass(frozen=True)
class ReferenceRow:
    """One caption as read from the file."""

    where: str
    image: str
    caption: str | None
    """None if the file holds a null."""
    split: str | None = None
    is_rejected: bool = False
    """Whether VizWiz marks the caption as rejected or as one of its stock sentences ("precanned")."""
    file: Path | None = None
    """The image beside a text file of captions."""
    status: str | None = None
    """The status of a row of a table that `caption` wrote, lower case; None in any other file."""


@dataclass(frozen=True)
class ColumnNames:
    """The columns of a table, or the fields of a record, that a user names; None for the usual names."""

    image: str | None = None
    caption: str | None = None

    def refuse(self, layout: str) -> None:
        """Raise AnnotationError if a column is named: `layout` has none."""
        if self.image is not None or self.caption is not None:
            raise AnnotationError(f"{layout} has no columns to name; leave out `image_column` and `caption_column`")


@dataclass(frozen=True)
class FoundColumns:
    """Which of the columns hold image, caption and split, as positions."""

    image: int
    caption: int
    split: int | None
    rejected: tuple[int, ...] = ()
    """Those that mark captions as rejected or precanned."""
    status: int | None = None
    """That of a table that `caption` wrote."""

    @property
    def positions(self) -> list[int]:
        """The positions of all of them."""
        others = [position for position in (self.split, self.status) if position is not None]
        return [self.image, self.caption, *others, *self.rejected]

    def status_in(self, values: Sequence[Any]) -> str | None:
        """The status in a row with these `values`, lower case; None if the file has none."""
        if self.status is None:
            return None
        return str(values[self.status]).strip().lower() if self.status < len(values) else ""


def find_columns(header: Sequence[str], wanted: ColumnNames) -> FoundColumns:
    """The columns of `header` to read.

    A name matches exactly, or else without regard to case and spaces around it. Raises AnnotationError if the column
    of image or caption is not there, if both names mean one column, or if two columns have the name of one to read.
    """
    image = _position(header, _IMAGE_NAMES, wanted.image)
    caption = _position(header, _CAPTION_NAMES, wanted.caption)
    if image is None or caption is None:
        found_names = ", ".join(name.strip() for name in header)[:100]
        for given, lacking in ((wanted.image, "caption"), (wanted.caption, "image")):
            if given is not None:
                raise AnnotationError(
                    f"has the column {given!r}, but which holds the {lacking}s? name it with `{lacking}_column`; "
                    f"the columns are {found_names}"
                )
        raise AnnotationError(
            f"needs the columns image and caption, but has: {found_names}; expected {FORMATS}; or name its columns "
            "with `image_column` and `caption_column`"
        )
    if image == caption:
        raise AnnotationError(f"`image_column` and `caption_column` are the same column, {header[image].strip()!r}")
    rejected = [_position(header, (name,), None) for name in REJECTED]
    marks = tuple(position for position in rejected if position is not None)
    is_own = header[image].strip().casefold() == OWN_IMAGE_COLUMN
    status = _position(header, ("status",), None) if is_own else None
    found = FoundColumns(image, caption, _position(header, ("split",), None), marks, status)
    for position in found.positions:
        if header.count(header[position]) > 1:
            raise AnnotationError(f"has two columns {header[position].strip()!r}; rename or remove one of them")
    return found


def has_columns(header: Sequence[str], wanted: ColumnNames) -> bool:
    """Whether `find_columns` finds the columns of image and caption in `header`."""
    try:
        find_columns(header, wanted)
    except AnnotationError:
        return False
    return True


def is_marked(value: object) -> bool:
    """Whether the value of a field or column such as `is_rejected` is true; "False", "0" and "" are not."""
    return bool(value) and str(value).strip().casefold() not in ("", "false", "0", "0.0", "no", "none", "nan")


def _position(header: Sequence[str], usual: Sequence[str], named: str | None) -> int | None:
    folded = [name.strip().casefold() for name in header]
    if named is None:
        return next((folded.index(name) for name in usual if name in folded), None)
    if named in header:
        return header.index(named)
    if named.strip().casefold() in folded:
        return folded.index(named.strip().casefold())
    shown = ", ".join(name.strip() for name in header)[:200]
    raise AnnotationError(f"has no column {named!r}; its columns are {shown}")
