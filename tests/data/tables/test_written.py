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
            written.add("b.jpg", b"always", tmp_path / "b.txt")
    written = WrittenTexts(table, "sidecars")
    assert [run for run in range(33) if written.has("a.jpg", b"run %d" % run)] == list(range(17, 33))
    assert written.has("b.jpg", b"always")
    assert written.has_any("a.jpg")
    assert not written.has("b.jpg", b"run 32")
    assert len((made_dir(table) / "sidecars").read_bytes().split()) == 2 * 17


def test_what_was_written_where_is_known_to_tables_beside_it(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("a/1.csv", "a/2.csv", "b/1.csv"))
    for table in (first, second, other):
        made_dir(table).mkdir(parents=True)
    sidecar = tmp_path / "photos" / "a.txt"
    written = WrittenTexts(first, "sidecars")
    with written.adding():
        written.add("a.jpg", b"a dog", sidecar)
    link = tmp_path / "link"
    link.symlink_to(sidecar.parent)
    assert WrittenTexts(second, "sidecars").is_of_another_table(link / "a.txt", b"a dog")
    assert WrittenTexts(other, "sidecars").is_of_another_table(sidecar, b"a dog")
    for table, place, text in (
        (first, sidecar, b"a dog"),
        (second, tmp_path / "a.txt", b"a dog"),
        (second, sidecar, b""),
    ):
        assert not WrittenTexts(table, "sidecars").is_of_another_table(place, text)
