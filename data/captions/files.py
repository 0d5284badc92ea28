"""Which files hold the reference captions, as a caller gives them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from captionmill.data.captions.formats.detect import check_layout
from captionmill.data.captions.formats.rows import ColumnNames
from captionmill.data.errors import AnnotationError
from captionmill.data.paths import AnyPaths, as_paths

Only = Literal["reviewed"]
"""`reviewed`: the captions that a person corrected or accepted."""


@dataclass(frozen=True, init=False)
class CaptionFiles:
    """Files of reference captions, or folders with text files beside images; they are read as one."""

    paths: tuple[Path, ...]
    image_column: str | None = None
    """The column of a table, or the field of a record, that holds the image; None for the usual names."""
    caption_column: str | None = None
    """The column or field that holds the caption; None for the usual names."""
    only: Only | None = None
    """Which rows of the tables that `caption` wrote are used; None for all. Other files are used whole."""

    def __init__(
        self,
        paths: AnyPaths,
        image_column: str | None = None,
        caption_column: str | None = None,
        only: Only | None = None,
    ) -> None:
        """Of one path or several, which may be strings; AnnotationError if `only` is unknown."""
        if only is not None and only not in get_args(Only):
            raise AnnotationError(f"`only` must be {', '.join(get_args(Only))}, not {only!r}")
        object.__setattr__(self, "paths", tuple(as_paths(paths)))
        object.__setattr__(self, "only", only)
        object.__setattr__(self, "image_column", image_column)
        object.__setattr__(self, "caption_column", caption_column)

    @property
    def columns(self) -> ColumnNames:
        """The names of both columns."""
        return ColumnNames(self.image_column, self.caption_column)

    def to_json(self) -> dict[str, str | list[str]]:
        """For a record: the path or the list of them as `captions`, and the settings."""
        paths = [str(path) for path in self.paths]
        return {"captions": paths[0] if len(paths) == 1 else paths, **self.settings}

    @property
    def settings(self) -> dict[str, str]:
        """How the files are read, as far as it is not as usual: `image_column`, `caption_column` and `only`."""
        settings = {"image_column": self.image_column, "caption_column": self.caption_column, "only": self.only}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def name(self) -> str:
        """The paths of the files, for a message."""
        return ", ".join(map(str, self.paths))

    def check(self) -> None:
        """Raise the AnnotationError that reading would raise for the beginning of a file, without reading further."""
        self.require_different()
        for path in self.paths:
            check_layout(path, self.columns)

    def require_different(self) -> None:
        """Raise AnnotationError if there is no file, or one is given twice: its captions would count twice."""
        if not self.paths:
            raise AnnotationError("no file of captions; give one as `captions`")
        path, count = Counter(path.resolve() for path in self.paths).most_common(1)[0]
        if count > 1:
            raise AnnotationError(f"{path}: given twice as `captions`; leave one out")


Captions = AnyPaths | CaptionFiles
"""Reference captions: one path, several, or `CaptionFiles` to name the columns too."""


def as_caption_files(captions: Captions) -> CaptionFiles:
    """`captions` as `CaptionFiles`."""
    return captions if isinstance(captions, CaptionFiles) else CaptionFiles(captions)
