"""A person's captions belong to images: random moves of images against a model that knows which image is which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.review import Review, is_decision
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import TableSummary, WantedTable, update_captions


class Folder:
    """Images, by the number of what they show, and the table of their captions."""

    def __init__(self, table: Path, shown: dict[str, int]) -> None:
        self.table, self.shown = table, shown

    def caption(self, corrections: Sequence[Review] = ()) -> TableSummary:
        keys = sorted(self.shown)
        sources = np.array([self.shown[key] for key in keys], dtype=np.uint32)

        def make_rows(missing: Sequence[str]) -> list[CaptionRow]:
            return [CaptionRow(key, f"a model on {self.shown[key]}", 0.5) for key in missing]

        def contents_of(wanted: Sequence[str]) -> list[int]:
            return [self.shown.get(key, 0) for key in wanted]

        wanted = WantedTable(keys, sources, {}, contents_of=contents_of)
        return update_captions(self.table, wanted, make_rows, corrections=corrections)

    def correct(self, key: str, caption: str) -> None:
        """Change the caption of an image in the table, as an editor does."""
        lines = self.table.read_text(encoding="utf-8-sig").splitlines()
        self.table.write_text(
            "\n".join(f"{key},{caption},,,ok," if line.startswith(f"{key},") else line for line in lines)
        )

    @property
    def captions(self) -> dict[str, str]:
        """Those of a person."""
        return {row.path: row.caption for row in read_captions(self.table) if is_decision(row.status)}


@pytest.mark.parametrize("seed", range(40))
def test_captions_stay_with_their_images_wherever_these_go(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    folder = Folder(tmp_path / "t.csv", {f"{name}.png": number for number, name in enumerate("abcde", 1)})
    written: dict[int, str] = {}
    assumed: dict[tuple[str, int], str] = {}
    away: list[int] = []
    folder.caption()
    for step in range(15):
        keys = sorted(folder.shown)
        free = f"{'sub/' * int(rng.integers(2))}{step}.png"
        first, second = rng.choice(keys, 2, replace=False).tolist()
        named: tuple[str, ...] = ()
        match rng.integers(6):
            case 0:
                folder.shown[free] = folder.shown.pop(first)
            case 1:
                folder.shown[first], folder.shown[second] = folder.shown[second], folder.shown[first]
            case 2 if len(keys) > 3:
                away.append(folder.shown.pop(first))
            case 3 if len(keys) > 3:  # another image gets its name
                before = folder.captions.get(first)
                away.append(folder.shown[first])
                folder.shown[first] = folder.shown.pop(second)
                if before and folder.shown[first] not in written and (first, folder.shown[first]) not in assumed:
                    assumed[first, folder.shown[first]] = before  # nobody knows whether it is the same
                    named = (first,)
            case 4 if away:
                folder.shown[free] = away.pop(0)
            case _:
                written[folder.shown[first]] = f"a person in step {step}"
                folder.correct(first, written[folder.shown[first]])
        summary = folder.caption()
        expected = {key: written.get(image, assumed.get((key, image))) for key, image in folder.shown.items()}
        assert folder.captions == {key: caption for key, caption in expected.items() if caption}
        assert summary.changed == named


def test_a_caption_of_an_image_that_nobody_knows_any_more_stays_under_its_key_and_is_named_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "t.csv", {"a.png": 1, "b.png": 2})
    folder.caption()
    folder.correct("a.png", "Anna climbs")
    folder.caption()
    folder.shown["a.png"] = 3
    assert folder.caption().changed == ("a.png",)
    assert folder.caption().changed == ()
    assert folder.captions == {"a.png": "Anna climbs"}
    folder.shown["c.png"] = 1
    folder.caption()
    assert folder.captions == {"a.png": "Anna climbs", "c.png": "Anna climbs"}


def test_a_caption_that_may_be_about_another_image_does_not_follow_the_one_that_is_there(tmp_path: Path) -> None:
    """As after a run of a folder inside the folder into the same table."""
    folder = Folder(tmp_path / "t.csv", {"a.png": 1, "sub/a.png": 2})
    folder.caption()
    folder.correct("a.png", "Anna climbs")
    folder.caption()
    folder.shown = {"a.png": 2}
    assert folder.caption().changed == ("a.png",)
    folder.shown = {"a.png": 1, "sub/a.png": 2}
    summary = folder.caption()
    assert (summary.renamed, summary.changed, summary.absent) == (0, (), 0)
    assert folder.captions == {"a.png": "Anna climbs"}


def test_a_correction_made_beside_the_table_is_about_the_image_that_is_there(tmp_path: Path) -> None:
    """As in sidecars that were exchanged together with their images."""
    folder = Folder(tmp_path / "t.csv", {"a.png": 1, "b.png": 2})
    folder.caption()
    folder.correct("a.png", "Anna climbs")
    folder.caption()
    folder.shown = {"a.png": 2, "b.png": 1}
    folder.caption([Review("b.png", "corrected", "Anna climbs")])
    assert folder.captions == {"b.png": "Anna climbs"}


def test_a_decision_that_is_taken_back_does_not_follow_from_an_earlier_key(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "t.csv", {"a.png": 1, "b.png": 2})
    folder.caption()
    folder.correct("a.png", "Anna climbs")
    folder.caption()
    folder.shown = {"b.png": 2, "c.png": 1}
    folder.caption()
    assert folder.captions == {"c.png": "Anna climbs"}
    folder.caption([Review("c.png", "undecided", "")])
    folder.caption()
    assert folder.captions == {}
    folder.shown = {"b.png": 2, "d.png": 1}
    folder.caption()
    assert folder.captions == {}


def test_hundreds_of_decisions_follow_an_exchange_after_the_journal_was_made_shorter(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "t.csv", {f"{number:03d}.png": number for number in range(1, 601)})
    folder.caption()
    folder.caption([Review(key, "corrected", f"a person on {number}") for key, number in folder.shown.items()])
    assert folder.caption().corrections == 0
    folder.shown = {key: number % 600 + 1 for key, number in folder.shown.items()}
    assert folder.caption().renamed == 600
    assert folder.captions == {key: f"a person on {number}" for key, number in folder.shown.items()}
    assert folder.caption().renamed == 0


def test_a_correction_of_an_image_that_is_exchanged_before_the_next_run_is_named_and_replaces_none(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path / "t.csv", {"a.png": 1, "b.png": 2})
    folder.caption()
    folder.correct("b.png", "Ben waits")
    folder.caption()
    folder.correct("a.png", "Anna climbs")
    folder.shown = {"a.png": 2, "b.png": 1}
    assert folder.caption().changed == ("a.png",)
    folder.shown = {"a.png": 1, "b.png": 2}
    folder.caption()
    assert folder.captions["b.png"] == "Ben waits"


def test_copies_keep_captions_of_their_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "t.csv", {"a.png": 1, "b.png": 2, "c.png": 1})
    folder.caption([Review("a.png", "corrected", "one"), Review("c.png", "corrected", "two")])
    folder.shown = {"a.png": 1, "b.png": 2}
    folder.caption([Review("a.png", "corrected", "three")])
    folder.shown |= {"c.png": 1}
    folder.caption()
    assert folder.captions == {"a.png": "three", "c.png": "two"}
    folder.shown = {"sub/a.png": 1, "b.png": 2, "sub/c.png": 1}
    assert folder.caption().absent == 0
    assert folder.captions == {"sub/a.png": "three", "sub/c.png": "two"}
