"""The text that goes with an image into files for other programs: its caption inside fixed words, such as a prefix."""

import re
import string
from dataclasses import dataclass

from captionmill.data.errors import SettingError
from captionmill.data.tables.rows import tidy

_FIELD = "caption"
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Wording:
    """Fixed words around each caption."""

    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, prefix: str, suffix: str, template: str | None) -> "Wording":
        """From the settings of these names; SettingError if they contradict each other or the template is not valid."""
        for name, text in (("prefix", prefix), ("suffix", suffix), ("caption_template", template or "")):
            if not text.isprintable():
                raise SettingError(f"`{name}` must be one line of printable text, not {text!r}")
        if template is None:
            return cls(prefix, suffix)
        if prefix or suffix:
            raise SettingError("`caption_template` holds the words around a caption: leave out `prefix` and `suffix`")
        return cls(*_split_template(template))

    @property
    def is_plain(self) -> bool:
        """Whether the text is the caption itself."""
        return not (self.before or self.after)

    def text(self, caption: str) -> str:
        """The text for `caption`."""
        return f"{self.before}{caption}{self.after}"

    def caption_in(self, text: str) -> str:
        """The caption in a text that a person may have changed: without the fixed words at its ends, if it has them."""
        caption = tidy(text)
        caption = caption.removeprefix(_SPACES.sub(" ", self.before).lstrip())
        return caption.removesuffix(_SPACES.sub(" ", self.after).rstrip()).strip()


def _split_template(template: str) -> tuple[str, str]:
    """The words before and after the caption; SettingError for a template in which the caption is not there once."""
    wanted = f"`caption_template` must hold {{{_FIELD}}} once and no other field"
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as exc:
        raise SettingError(f"{wanted}, and other braces twice, not {template!r}") from exc
    parts = ["", ""]
    place = 0
    for literal, name, form, conversion in fields:
        parts[place] += literal
        if name is not None:
            if name != _FIELD or form or conversion or place:
                raise SettingError(f"{wanted}, not {template!r}")
            place = 1
    if not place:
        raise SettingError(f"{wanted}, not {template!r}")
    return parts[0], parts[1]
