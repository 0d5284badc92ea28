"""The words around captions in files for other programs."""

from typing import Any

import pytest

from captionmill.data.errors import SettingError
from captionmill.data.tables.wording import Wording
from captionmill.stages.table_settings import TableConfig


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "a dog"),
        ({"prefix": "photo of ", "suffix": ", film"}, "photo of a dog, film"),
        ({"caption_template": "photo of {caption}"}, "photo of a dog"),
        ({"caption_template": "{{x}} {caption}!"}, "{x} a dog!"),
    ],
)
def test_a_caption_gets_them_and_is_found_in_the_text_again(settings: dict[str, Any], text: str) -> None:
    wording = TableConfig(**settings).wording
    assert wording.text("a dog") == text
    assert wording.caption_in(f" {text}\r\n") == "a dog"
    assert wording.caption_in("something else") == "something else"


def test_a_text_that_only_begins_with_the_letters_of_a_prefix_keeps_them() -> None:
    assert Wording("photo ", "").caption_in("photographs of a dog") == "photographs of a dog"
    assert Wording("photo of ", " .").caption_in("photo  of a\tred dog .") == "a red dog"


@pytest.mark.parametrize(
    "template",
    [
        *("", "photo", "{}", "{0}", "{path}", "{caption} {caption}", "{caption} {path}", "{caption!r}", "{caption:9}"),
        *("{caption", "caption}", "{caption.upper}", "a\n{caption}", "{ caption }"),
    ],
)
def test_a_template_without_one_caption_is_refused(template: str) -> None:
    with pytest.raises(SettingError, match="`caption_template` must"):
        TableConfig(caption_template=template)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingError, match="leave out `prefix` and `suffix`"):
        TableConfig(prefix="a ", caption_template="{caption}")
    with pytest.raises(SettingError, match="`prefix` must be one line of printable text"):
        TableConfig(prefix="a\nb")
    with pytest.raises(SettingError, match="`tar_suffix` applies to copies of tars only: set `tars` too"):
        TableConfig(tar_suffix=".json")
