"""The log beside a store: a row an extraction, whatever became of the rows before it."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from captionmill.data.features.log import ExtractionRecord, append_record, log_path, read_records

RECORD = ExtractionRecord(
    finished="2026-11-26T04:25:17+00:00",
    images='a "quoted", folder',
    found=122,
    cached=20,
    extracted=100,
    failed=2,
    duration_s=60.5,
    engine="cpu openvino float32",
    reading=0.25,
    decoding=0.25,
    forward=0.5,
    writing=0.0,
    advice="forward-bound: a GPU helps",
)


def test_rows_are_read_as_they_were_appended(tmp_path: Path) -> None:
    captioned = replace(RECORD, captioned=120, captioning_s=5.125)
    append_record(tmp_path / "features.h5", RECORD)
    append_record(tmp_path / "features.h5", captioned)
    assert log_path(tmp_path / "features.h5") == tmp_path / "features.log.csv"
    assert read_records(tmp_path / "features.h5") == [RECORD, captioned]


def test_a_log_of_an_earlier_version_gets_the_column_that_it_lacks(tmp_path: Path) -> None:
    append_record(tmp_path / "features.h5", RECORD)
    path = log_path(tmp_path / "features.h5")
    earlier = b"".join(line.rpartition(b",")[0] + b"\n" for line in path.read_bytes().splitlines())
    assert earlier.splitlines()[0].endswith(b",captioned,captioning_s")
    path.write_bytes(earlier)
    assert read_records(tmp_path / "features.h5") == [RECORD]
    passed_over = replace(RECORD, left_out="2 hidden images, 1 hidden folder")
    append_record(tmp_path / "features.h5", passed_over)
    assert read_records(tmp_path / "features.h5") == [RECORD, passed_over]
    assert path.read_bytes().splitlines()[1] == earlier.splitlines()[1]


def test_a_store_without_a_log_has_no_rows(tmp_path: Path) -> None:
    assert read_records(tmp_path / "features.h5") == []


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    append_record(tmp_path / "features.h5", RECORD)
    with log_path(tmp_path / "features.h5").open("a") as file:
        file.write("2026-11-26T05:00:00+00:00,photos,12,0")
    assert read_records(tmp_path / "features.h5") == [RECORD]
    append_record(tmp_path / "features.h5", RECORD)
    assert read_records(tmp_path / "features.h5") == [RECORD, RECORD]


@pytest.mark.parametrize(("name", "cell"), [("found", "9" * 400), ("duration_s", "inf"), ("duration_s", "1e308")])
def test_a_row_with_a_number_beyond_use_is_left_out(name: str, cell: str, tmp_path: Path) -> None:
    append_record(tmp_path / "features.h5", RECORD)
    path = log_path(tmp_path / "features.h5")
    header, row = path.read_text().splitlines()
    cells = dict(zip(header.split(","), next(csv.reader([row])), strict=True)) | {name: cell, "images": "photos"}
    path.write_text(f"{header}\n{row}\n{','.join(cells.values())}\n")
    assert read_records(tmp_path / "features.h5") == [RECORD]


def test_a_row_that_was_cut_inside_a_long_cell_hides_none_before_it(tmp_path: Path) -> None:
    append_record(tmp_path / "features.h5", RECORD)
    with log_path(tmp_path / "features.h5").open("a") as file:
        file.write('2026-11-26T05:00:00+00:00,"photos' + "," * 200_000)
    assert read_records(tmp_path / "features.h5") == [RECORD]


def test_a_file_that_is_no_log_has_no_rows_and_stops_no_extraction(tmp_path: Path) -> None:
    log_path(tmp_path / "features.h5").write_bytes(b"\xff\xfe other,table\n1,2\n")
    append_record(tmp_path / "features.h5", RECORD)
    assert read_records(tmp_path / "features.h5") == []


def test_a_folder_whose_name_is_not_utf_8_is_logged_all_the_same(tmp_path: Path) -> None:
    append_record(tmp_path / "features.h5", replace(RECORD, images="photos\udce9"))
    assert [record.images for record in read_records(tmp_path / "features.h5")] == ["photos\\udce9"]
