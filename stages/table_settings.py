"""The settings of a table of captions and of the files that are written with it, as in `stages/settings.py`."""

from dataclasses import dataclass

from captionmill.data.errors import SettingError
from captionmill.data.paths import AnyPath
from captionmill.data.tables.formats import TableFormat
from captionmill.data.tables.wording import Wording
from captionmill.stages.fields import Configuration, setting


@dataclass(frozen=True)
class TableConfig(Configuration):
    """A table of captions: its format, which captions are flagged, and which files are written with it."""

    format: TableFormat | None = setting(
        None, "Format of the table of captions.", unset="by the suffix of the output, else csv", example="csv"
    )
    gallery: AnyPath | None = setting(
        None, "Page to write too, with all images and their captions (HTML).", unset="no page", example="captions.html"
    )
    sidecar: str | None = setting(
        None,
        "Suffix of a text file to write beside each image with its caption, such as .txt: a.jpg, a.txt. With .xmp the "
        "description of a.jpg in a.jpg.xmp, for photo programs.",
        unset="no files",
        example=".txt",
    )
    metadata_jsonl: AnyPath | None = setting(
        None,
        "metadata.jsonl to write too, in the folder of the images or above: the captions as Hugging Face's imagefolder "
        "reads them.",
        unset="no file",
        example="images/metadata.jsonl",
    )
    tars: AnyPath | None = setting(
        None,
        "Folder for a copy of each tar of images, with a member for the caption behind each image (webdataset).",
        unset="no copies",
        example="captioned",
        path_to="folder",
    )
    tar_suffix: str = setting(".txt", "Suffix of these members, such as .txt, or .json for an object with the caption.")
    prefix: str = setting(
        "", "Text before each caption in every file that is written with the table; the table has the caption only."
    )
    suffix: str = setting("", "Text after each caption there.")
    caption_template: str | None = setting(
        None,
        'Text around each caption there instead of prefix and suffix, such as "photo of {caption}".',
        unset="the caption itself",
        example="photo of {caption}",
    )
    low_confidence: float | None = setting(
        None,
        "Confidence below which a caption is flagged.",
        least=0,
        most=1,
        unset="the confidence that a tenth of the model's validation captions are below",
        example=0.5,
    )
    redo_corrected: bool = False
    """Whether to forget every caption that a person corrected or accepted. No file can set it: it would do so at every
    run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Wording.of(self.prefix, self.suffix, self.caption_template)
        if self.tars is None and self.tar_suffix != ".txt":
            raise SettingError("`tar_suffix` applies to copies of tars only: set `tars` too")

    @property
    def wording(self) -> Wording:
        """The words around each caption in the files that are written with the table."""
        return Wording.of(self.prefix, self.suffix, self.caption_template)
