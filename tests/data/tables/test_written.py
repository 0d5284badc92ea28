"""What was written beside a table is known again, and its record does not grow with every run."""

from pathlib import Path

from captionmill.data.tables.journal import made_dir
from captionmill.data.tables.written import WrittenTexts


def test_a_record_keeps_the_last_texts_of_each_image(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    made_dir(table).mkdir()
    for run in range(33):
        written = WrittenTexts(table, "sidecars")
        with written.adding():
            written.add("a.jpg", b"run %d" % run)
            written.add("b.jpg", b"always")
    written = WrittenTexts(table, "sidecars")
    assert [run for run in range(33) if written.has("a.jpg", b"run %d" % run)] == list(range(17, 33))
    assert written.has("b.jpg", b"always")
    assert written.has_any("a.jpg")
    assert not written.has("b.jpg", b"run 32")
    assert len((made_dir(table) / "sidecars").read_bytes().split()) == 2 * 17
