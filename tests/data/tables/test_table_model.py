"""A table of captions against a plain model: runs of several models, edits, decisions and runs that fail."""

import csv
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as draw
from properties import plain

from captionmill.data.tables.decisions import apply_decisions
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.journal import CaptionJournal
from captionmill.data.tables.rows import CaptionRow
from captionmill.data.tables.update import WantedTable, update_captions

KEYS = ["=a.jpg", "b.jpg", "ä b.jpg", "日.png"]
TEXTS = ["a dog", "=1+1", 'zwei "Hunde", quer', "犬", "'quoted"]
KEY_SETS = draw.sets(draw.sampled_from(KEYS), min_size=1)
MODELS = draw.sampled_from(["first", "second"])


@dataclass(frozen=True)
class Run:
    """A run over some images; it fails at one of them, if that is to be captioned."""

    keys: set[str]
    model: str
    fails_at: str


@dataclass(frozen=True)
class Edit:
    """A person changes a caption in the table."""

    key: str
    text: str


@dataclass(frozen=True)
class Decide:
    """A person saves a decision in the gallery."""

    key: str
    decision: str
    text: str
    is_outdated: bool


ACTIONS = draw.lists(
    draw.one_of(
        draw.builds(Run, KEY_SETS, MODELS, draw.sampled_from(["", "", *KEYS])),
        draw.builds(Edit, draw.sampled_from(KEYS), draw.sampled_from(TEXTS)),
        draw.builds(
            Decide,
            draw.sampled_from(KEYS),
            draw.sampled_from(["corrected", "accepted"]),
            draw.sampled_from(TEXTS),
            draw.booleans(),
        ),
    ),
    max_size=6,
)


def caption_of(model: str, key: str) -> str:
    return f"{model} {key}"


@dataclass
class Model:
    """What the table shows, (caption, status) by key, and what stands behind it."""

    table: dict[str, tuple[str, str]] = field(default_factory=dict)
    edited: dict[str, str] = field(default_factory=dict)
    decided: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    def take_edits(self) -> None:
        for key, text in self.edited.items():
            if key in self.table and self.table[key][0] != text:
                self.decided[key] = self.table[key] = (text, "corrected")
        self.edited.clear()

    def run(self, action: Run) -> list[str]:
        """The keys that are captioned."""
        made: list[str] = []
        self.take_edits()
        for key in sorted(action.keys):
            if self.made.get(key) != action.model:
                if key == action.fails_at:
                    return made
                made.append(key)
                self.made[key] = action.model
        shown = {key: (caption_of(action.model, key), "ok") for key in sorted(action.keys)}
        self.table = {key: self.decided.get(key, row) for key, row in shown.items()}
        return made

    def decide(self, action: Decide, shown: str) -> bool:
        """Whether the decision is merged."""
        self.take_edits()
        caption = action.text if action.decision == "corrected" else shown
        row = self.table.get(action.key)
        if row is None or (row != (caption, action.decision) and row[0] != shown):
            return False
        if row != (caption, action.decision):
            self.decided[action.key] = self.table[action.key] = (caption, action.decision)
        return True


def run(table: Path, action: Run) -> list[str]:
    made: list[str] = []

    def make_rows(missing: Sequence[str]) -> Iterator[CaptionRow]:
        for key in missing:
            if key == action.fails_at:
                raise OSError("no space left")
            made.append(key)
            yield CaptionRow(key, caption_of(action.model, key), 0.5)

    keys = sorted(action.keys)
    sources = np.array([zlib.crc32(key.encode()) for key in keys], np.uint32)
    update_captions(table, WantedTable(keys, sources, {"model": action.model}), make_rows, block_rows=2)
    return made


def edit(table: Path, action: Edit) -> bool:
    """Change the cell as an editor does; whether there is one."""
    lines = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    found = [cells for cells in lines[1:] if cells[0].removeprefix("'") == action.key]
    for cells in found:
        cells[1] = f"'{action.text}" if action.text[0] in "='" else action.text
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return bool(found)


def decide(table: Path, action: Decide, shown: str) -> bool:
    path = table.with_name("decisions.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [("path", "decision", "caption", "shown"), (action.key, action.decision, action.text, shown)]
        csv.writer(file).writerows([["'" + cell if cell[0] in "='" else cell for cell in row] for row in rows])
    return not apply_decisions(path, table).conflicts


@plain
@given(draw.builds(Run, KEY_SETS, MODELS, draw.just("")), ACTIONS)
def test_a_table_shows_what_a_plain_model_does_after_each_action(
    first: Run, actions: list[Run | Edit | Decide]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        table, model = Path(name, "t.csv"), Model()
        for action in [first, *actions]:
            if isinstance(action, Edit):
                if edit(table, action):
                    model.edited[action.key] = action.text
                continue
            if isinstance(action, Decide):
                seen = model.edited.get(action.key, model.table.get(action.key, ("gone",))[0])
                shown = "older" if action.is_outdated else seen
                assert decide(table, action, shown) == model.decide(action, shown)
            elif action.fails_at in action.keys and model.made.get(action.fails_at) != action.model:
                with pytest.raises(OSError, match="no space left"):
                    run(table, action)
                model.run(action)
                captions = {key: caption for key, (caption, _) in model.table.items()}
                assert {row.path: row.caption for row in read_captions(table)} == captions
                continue
            else:
                assert run(table, action) == model.run(action)
            assert {row.path: (row.caption, row.status) for row in read_captions(table)} == model.table


@plain
@given(draw.lists(draw.tuples(draw.sampled_from(KEYS), MODELS), min_size=1, max_size=8), draw.data())
def test_a_journal_that_is_cut_off_anywhere_keeps_every_line_before(
    rows: list[tuple[str, str]], data: draw.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        journal = CaptionJournal(Path(name))
        with journal.append(0, block_rows=3) as writer:
            for key, model in rows:
                writer.add_row(CaptionRow(key, caption_of(model, key), 0.5), 1)
        content = journal.path.read_bytes()
        journal.path.write_bytes(content[: data.draw(draw.integers(0, len(content)))])
        whole = max(0, journal.path.read_bytes().count(b"\n") - 1)  # the first line describes the file
        expected = dict(rows[:whole])
        keys = sorted(KEYS)
        known = journal.known(keys, np.ones(len(keys), np.uint32), {})
        offsets = [offset for offset in known.offsets.tolist() if offset >= 0]
        found = {row.path: row.caption for row in journal.rows_at(offsets)}
        assert found == {key: caption_of(model, key) for key, model in expected.items()}
        with journal.append(known.end) as writer:
            writer.add_row(CaptionRow("new.jpg", "new", 0.5), 1)
        known = journal.known(["new.jpg"], np.ones(1, np.uint32), {})
        assert next(journal.rows_at(known.offsets)).caption == "new"
