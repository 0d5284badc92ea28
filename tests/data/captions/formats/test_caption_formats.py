"""Captions in every layout that people have, from one file or several, with columns of any name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from builders import TESTS

from captionmill.data.captions.files import CaptionFiles
from captionmill.data.captions.near import describe_near
from captionmill.data.captions.references import Annotations, read_annotations, read_split_list
from captionmill.data.captions.splits import choose_splits
from captionmill.data.errors import AnnotationError, InputError
from captionmill.data.tables.formats import read_captions, write_parquet
from captionmill.data.tables.rows import CaptionRow

CASES = TESTS / "cases" / "captions"
TWO = {"x1.jpg": ("a dog",), "x2.jpg": ("a man",)}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def error_of(captions: Path | list[Path] | CaptionFiles) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(captions)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["a06_excel_sep_line.csv", "c03_coco_str_vs_int_id.json", "c13_jsonl.jsonl", "c14_own_jsonl.jsonl"],
)
def test_each_of_these_files_holds_two_captions(name: str) -> None:
    assert read_annotations(CASES / name) == Annotations(TWO, {})


def test_a_number_sign_in_a_tsv_makes_no_token_file_of_it() -> None:
    assert read_annotations(CASES / "a28_tsv_hash.tsv").captions == {"img#1": ("a dog",), "img#2": ("a man",)}


def test_an_unused_image_without_a_name_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    path = CASES / "c02_coco_no_file_name_unused.json"
    assert read_annotations(path).captions == TWO
    assert caplog.messages == [f"{path}: left out 1 images without file_name"]


def test_the_split_of_coco_images_is_honoured() -> None:
    annotations = read_annotations(CASES / "F5_coco_split.json")
    counts = {name: len(annotations.keys_of(name)) for name in ("train", "val", "test")}
    assert counts == {"train": 40, "val": 10, "test": 10}


COCO: dict[str, list[dict[str, object]]] = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": "2", "file_name": "b.jpg"}, {"id": 3.0, "file_name": "c.jpg"}],
    "annotations": [
        {"image_id": "1", "caption": "A cat."},
        {"image_id": 2, "caption": "A dog."},
        {"image_id": "3", "caption": None},
        {"image_id": 9, "caption": "A cow."},
    ],
}


@pytest.mark.parametrize(
    "content",
    [
        [{"image": "a.jpg", "caption": []}, {"image": "b.jpg", "caption": ["A dog."]}],
        {
            "images": [
                {"filename": "a.jpg", "split": "test", "sentences": []},
                {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "A dog."}]},
            ]
        },
    ],
)
def test_image_with_an_empty_list_of_captions_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: object
) -> None:
    path = write(tmp_path / "c.json", content)
    assert dict(read_annotations(path).captions) == {"b.jpg": ("A dog.",)}
    assert caplog.messages == [f"{path}: left out 1 captions without text"]


def with_splits(*splits: str | None) -> dict[str, list[dict[str, object]]]:
    images = [image | {"split": split} for image, split in zip(COCO["images"], splits, strict=True)]
    return COCO | {"images": images}


def test_coco_ids_match_as_text_and_what_belongs_to_no_image_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "c.json", COCO)
    assert read_annotations(path) == Annotations({"a.jpg": ("A cat.",), "b.jpg": ("A dog.",)}, {})
    assert caplog.messages == [
        f"{path}: left out 1 captions without text",
        f"{path}: left out 1 annotations of unknown images",
    ]


@pytest.mark.parametrize(("ours", "theirs"), [(42, "000042"), ("42.0", 42), ("42 ", 42.0), ("000042", "42"), (0, "00")])
def test_coco_ids_that_programs_write_in_different_ways_match(tmp_path: Path, ours: object, theirs: object) -> None:
    images, notes = [{"id": ours, "file_name": "a.jpg"}], [{"image_id": theirs, "caption": "A cat."}]
    path = write(tmp_path / "c.json", {"images": images, "annotations": notes})
    assert read_annotations(path).captions == {"a.jpg": ("A cat.",)}


def test_coco_splits_that_are_half_there_or_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", with_splits("train", "Restval", "test"))
    assert read_annotations(path).splits == {"a.jpg": "train", "b.jpg": "train"}
    assert read_annotations(path, restval="drop").splits == {"a.jpg": "train"}
    write(path, with_splits("train", None, "test"))
    assert error_of(path) == f"{path}: images[1] has no usable 'split'; download or export the file again"
    write(path, with_splits("train", "fold1", "test"))
    assert error_of(path) == f"{path}: annotations[1] has the split 'fold1'; use train, val or test"
    twice = {"images": [{"id": 1, "file_name": "a.jpg", "split": split} for split in ("train", "val")]}
    write(path, COCO | twice)
    assert error_of(path) == f"{path}: images[1] and images[0] are one image with different splits; correct one of them"


def test_the_split_of_coco_annotations_is_honoured_too_unless_their_images_have_another(tmp_path: Path) -> None:
    notes = [note | {"split": "Test" if note["image_id"] == 2 else "train"} for note in COCO["annotations"]]
    path = write(tmp_path / "c.json", COCO | {"annotations": notes})
    assert read_annotations(path).splits == {"a.jpg": "train", "b.jpg": "test"}
    write(path, with_splits("train", "test", "train") | {"annotations": notes})
    assert read_annotations(path).splits == {"a.jpg": "train", "b.jpg": "test"}
    write(path, with_splits("train", "val", "train") | {"annotations": notes})
    message = "annotations[1] has the split 'Test', but images[1] has 'val'; correct one of them"
    assert error_of(path) == f"{path}: {message}"
    write(path, with_splits("", "", ""))
    assert read_annotations(path).splits == {}


def test_coco_images_and_annotations_without_id_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"image_id": None, "caption": "A cow."}
    content = {"images": [*COCO["images"], {"id": None}], "annotations": [*COCO["annotations"], more]}
    path = write(tmp_path / "c.json", content)
    assert list(read_annotations(path).captions) == ["a.jpg", "b.jpg"]
    assert caplog.messages == [
        f"{path}: left out 1 images without id",
        f"{path}: left out 1 captions without text",
        f"{path}: left out 2 annotations of unknown images",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image,caption,is_rejected,is_precanned\na.jpg,a dog,False,0\na.jpg,a cat,True,\nb.jpg,a cow,,1\n",
        '{"image": "a.jpg", "text": "a dog"}\n{"image": "a.jpg", "text": ["a cat", "a cow"], "is_rejected": true}\n',
    ],
)
def test_rejected_captions_are_left_out_of_tables_and_records_too(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "c", text)
    assert read_annotations(path).captions == {"a.jpg": ("a dog",)}
    assert caplog.messages == [f"{path}: left out 2 captions that are marked as rejected or precanned (66.7%)"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c", "image,caption,caption\na.jpg,a dog,a cat\n")
    assert error_of(path) == f"{path}: has two columns 'caption'; rename or remove one of them"
    write(path, "x,image,caption,x\n1,a.jpg,a dog,2\n")
    assert read_annotations(path).captions == {"a.jpg": ("a dog",)}


@pytest.mark.parametrize("text", ['{{"image": "a.jpg", "caption": "x", "n": {}}}\n', '[{{"n": {}}}]'])
def test_a_number_that_is_too_long_for_python_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "c", text.format("9" * 5000))
    assert error_of(path).startswith(f"{path}: not valid JSON (Exceeds the limit (4300 digits)")


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('{"image": "a.jpg", "caption": ["one", "two", null], "split": "train"}\n\n', ("one", "two")),
        ('[\n {"image_name": "a.jpg", "comment": "one"},\n {"image_name": "a.jpg", "comment": "two"}]', ("one", "two")),
        ('{"image": {"bytes": null, "path": "a.jpg"}, "text": "one"}', ("one",)),
        ('"sep=;"\r\nfile_name;text\r\na.jpg;one\r\n', ("one",)),
        ("SEP=\t\nimage\tcaption\na.jpg\tone;two\n", ("one;two",)),
        ("sep=^\nimage^caption\na.jpg^one,two\n", ("one,two",)),
        ("\n\nimage,caption,\n\na.jpg,one,\n", ("one",)),
    ],
)
def test_records_and_lines_that_name_the_separator_are_read(
    tmp_path: Path, text: str, captions: tuple[str, ...]
) -> None:
    assert read_annotations(write(tmp_path / "c", text)).captions == {"a.jpg": captions}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.jpg", "caption": "x"}\n{"image": "b.jpg"}\n', "line 2 needs the columns image and caption, but"),
        ('{"image": "a.jpg", "caption": "x"}\nb.jpg', "line 2 is not valid JSON (Expecting value: line 1 column 1"),
        ('{"image": "a.jpg", "caption": "x"}\n[1]', "line 2 is not an object with an image and a caption; download or"),
        ('{"image": 3, "caption": "x"}', "line 1 must have texts for image, caption and split; it has other values"),
        (
            '{"file": "a.jpg", "caption": "x"}\n{"file": "b.jpg"}',
            "needs the columns image and caption, but has: file, ",
        ),
    ],
)
def test_a_record_without_image_or_caption_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "c.jsonl", text)
    assert error_of(path).startswith(f"{path}: {message}")


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", '{"image": "a.jpg", "caption": "a dog \\ud83d"}\n')
    assert read_annotations(path).captions == {"a.jpg": ("a dog \ufffd",)}
    write(path, '{"image": "a.jpg", "caption": "a dog \\ud83d\\udc36", "split": "\\ud83d"}\n')
    assert error_of(path) == f"{path}: line 1 has the split '\\ud83d'; use train, val or test"


ROWS = [CaptionRow("a.jpg", "a dog, asleep", 0.5), CaptionRow("b.jpg", "", None, status="failed", error="damaged")]


def test_an_own_parquet_table_is_read_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write_parquet(path, ROWS)
    assert read_annotations(path).captions == {"a.jpg": ("a dog, asleep",)}
    with pytest.raises(AnnotationError, match=r"captions.parquet: has no column 'text'; its columns are path, caption"):
        CaptionFiles((path,), caption_column="text").check()
    content = path.read_bytes()
    for damaged in (content[:100], content.replace(b"caption", b"capt\xbfon")):  # cut off; a column named in no UTF-8
        path.write_bytes(damaged)
        assert error_of(path).startswith(f"{path}: damaged Parquet (")


@pytest.mark.parametrize("start", ["", "sep=;\r\n"])
def test_an_own_table_that_a_spreadsheet_saved_is_read_by_training_and_by_the_report(
    tmp_path: Path, start: str
) -> None:
    rows = 'a.jpg;"a dog; asleep";0,5;;ok;\r\nb.jpg;;;;failed;damaged\r\n;;;;;\r\n'
    path = write(tmp_path / "captions.csv", f"\ufeff{start}path;caption;confidence;flags;status;error\r\n{rows}")
    assert read_annotations(path).captions == {"a.jpg": ("a dog; asleep",)}
    assert [(row.path, row.caption, row.confidence, row.status) for row in read_captions(path)] == [
        ("a.jpg", "a dog; asleep", 0.5, "ok"),
        ("b.jpg", "", None, "failed"),
    ]


def test_a_row_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.jsonl", '{"path": "a.jpg", "caption": ' + "[" * 100_000)
    with pytest.raises(InputError, match=r"captions.jsonl: line 1 is not a complete row of captions"):
        list(read_captions(path))


@pytest.mark.parametrize("third", ['c.jpg,"a cat,0.5,,ok,', 'c.jpg,a TV of 32",0.5,,ok,'])
def test_a_quote_in_an_own_table_swallows_no_row_in_the_report(tmp_path: Path, third: str) -> None:
    rows = f'a.jpg,"a dog,0.5,,ok,\nb.jpg,a man,0.5,,ok,\n{third}\n'
    path = write(tmp_path / "captions.csv", f"path,caption,confidence,flags,status,error\n{rows}")
    with pytest.raises(InputError, match=r"captions.csv: line \d is not a complete row of captions"):
        list(read_captions(path))


def test_text_files_beside_images_are_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "d/b.PNG", "c.tar.jpg", ".hidden.jpg"):
        write(tmp_path / "p" / name, "")
    write(tmp_path / "p/a.txt", "\ufeffa dog\r\n\r\nanother dog\r\n")
    write(tmp_path / "p/d/b.PNG.txt", "a cat")
    write(tmp_path / "p/c.tar.TXT", " \n")
    write(tmp_path / "p/README.txt", "about")
    write(tmp_path / "p/e.txt", "a cow\u2028and a calf")
    annotations = read_annotations(tmp_path / "p", known_keys=["e.webp"])
    assert annotations == Annotations(
        {"a.jpg": ("a dog", "another dog"), "d/b.PNG": ("a cat",), "e.webp": ("a cow\u2028and a calf",)}, {}
    )
    assert caplog.messages == [
        f"{tmp_path}/p: left out 1 captions without text",
        f"{tmp_path}/p: left out 1 text files of no image",
    ]


def test_a_folder_of_text_files_of_no_image_and_one_that_is_not_utf_8_are_errors(tmp_path: Path) -> None:
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.jpg", "text": "a dog"}\n')
    assert error_of(tmp_path) == f"{tmp_path}: a folder without .txt files; give its metadata.jsonl"
    path = write(tmp_path / "a.txt", "a dog")
    assert (
        error_of(tmp_path) == f"{tmp_path}: none of the 1 .txt files in this folder is called like an image beside it"
    )
    write(tmp_path / "a.jpg", "")
    path.write_bytes(b"caf\xe9")
    assert error_of(tmp_path) == f"{tmp_path}: a.txt is not UTF-8 text; save it as UTF-8 and try again"
    assert "a folder of .txt files has no columns to name" in error_of(CaptionFiles((tmp_path,), "x"))


@pytest.mark.parametrize(
    "label", ["0 0.5 0.5 0.1 0.2", "17 1 .25 3e-05 1.0 0.93", "0 0 0.1 0.25 0.5 0.75 1 0.5", "2\t0.5\t0.5\t0.1\t0.2"]
)
def test_labels_of_objects_beside_images_are_no_captions(tmp_path: Path, label: str) -> None:
    for name, text in (("a.jpg", ""), ("a.txt", ""), ("b.jpg", ""), ("b.txt", f"{label}\n{label}\n")):
        write(tmp_path / name, text)
    labels = f"b.txt has boxes or outlines of objects, as YOLO's labels are, and no caption: {label!r}"
    assert error_of(tmp_path) == f"{tmp_path}: {labels}"


@pytest.mark.parametrize(
    "text", ["0 0.5 0.5 0.1 0.2\na dog", "1 0 1 0 1", "3 1.5 2.5 3.5 4.5", "0.5 0.5 0.1 0.2", "42"]
)
def test_captions_of_numbers_are_captions(tmp_path: Path, text: str) -> None:
    write(tmp_path / "a.jpg", "")
    write(tmp_path / "a.txt", text)
    assert read_annotations(tmp_path).captions == {"a.jpg": tuple(text.split("\n"))}


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    both = [CASES / "F6_first.csv", CASES / "F6_second.csv"]
    annotations = read_annotations(both)
    assert list(annotations.captions) == [f"{number:06d}.jpg" for number in range(60)]
    more = write(tmp_path / "more.jsonl", '{"image": "000000.jpg", "caption": "one more"}\n')
    assert read_annotations([*both, more]).captions["000000.jpg"] == ("a dog runs on grass", "one more")


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "image,caption,split\na.jpg,a dog,train\nb.jpg,a cat,test\n")
    second = write(tmp_path / "b.json", with_splits("test", "test", "test"))
    assert error_of([first, second]) == f"{second}: annotations[0] puts a.jpg in test, but it is in train already"
    third = write(tmp_path / "c.csv", "image,caption\na.jpg,one more\nc.jpg,a cow\n")
    assert error_of([first, third]) == (
        f"{first}, {third}: 1 images have no split, c.jpg first, but others have one: give a split to all of them, or "
        "to none"
    )
    assert error_of([first, third, tmp_path / "." / "a.csv"]) == f"{first}: given twice as `captions`; leave one out"
    empty = write(tmp_path / "d.csv", "image,caption\n")
    assert error_of([third, empty]) == f"{empty}: no captions in this file"
    assert error_of([]) == "no file of captions; give one as `captions`"


def test_columns_of_any_name_are_read_when_they_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "Datei;caption;Text, kurz\na.jpg;falsch;ein Hund\n")
    files = CaptionFiles((path,), "datei", "Text, kurz")
    assert read_annotations(files).captions == {"a.jpg": ("ein Hund",)}
    assert read_annotations(CaptionFiles((path,), "Datei")).captions == {"a.jpg": ("falsch",)}
    assert error_of(CaptionFiles((path,), "Bild")).startswith(f"{path}: has no column 'Bild'; its columns are Datei, ")
    assert error_of(CaptionFiles((path,), "caption")) == (
        f"{path}: `image_column` and `caption_column` are the same column, 'caption'"
    )
    tokens = write(tmp_path / "tokens", "a.jpg#0\ta dog\n")
    assert error_of(CaptionFiles((tokens,), "image")).startswith(
        f"{tokens}: a Flickr token file has no columns to name"
    )
    coco = write(tmp_path / "coco", COCO)
    assert error_of(CaptionFiles((coco,), "image")).startswith(f"{coco}: this JSON has no columns to name; leave out")
    other = write(tmp_path / "d.csv", "Datei,Satz\na.jpg,ein Hund\n")
    assert error_of(CaptionFiles((other,), "Datei")) == (
        f"{other}: has the column 'Datei', but which holds the captions? name it with `caption_column`; "
        "the columns are Datei, Satz"
    )


@pytest.mark.parametrize(
    ("names", "described"),
    [
        (["p/0001.JPG", "p/0002.JPG"], "2 of them differ from images with features only by case: p/0001.JPG is not p/"),
        (["p/0001", "p/0002.png"], "2 of them differ from images with features only by suffix: p/0001 is not p/0001."),
        (["p/1.jpg", "x"], "1 of them differs from images with features only by leading zeros: p/1.jpg is "),
        (["p/1"], "1 of them differs from images with features only by suffix and leading zeros: p/1 is"),
        (["1.png"], "1 of them differs from images with features only by suffix, leading zeros and folder: 1.pn"),
        (["0001.jpg"], ""),
        (["q.jpg"], ""),
    ],
)
def test_names_that_differ_in_little_are_described(names: list[str], described: str) -> None:
    keys = [f"p/{number:04d}.jpg" for number in range(10)]
    found = describe_near(names, keys, across_folders=True)
    assert found[: len(described) if described else None] == described


def test_the_names_that_differ_are_in_the_error_and_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    keys = [f"{number:04d}.jpg" for number in range(10)]
    by_number = Annotations({f"{number}": ("x",) for number in range(10)}, {})
    with pytest.raises(
        AnnotationError, match=r"none of the 10 captioned images has features: 10 of them differ .* by s"
    ):
        choose_splits(by_number, keys)
    with caplog.at_level(logging.WARNING):
        choose_splits(Annotations({key.upper() if key < "0004" else key: ("x",) for key in keys}, {}), keys)
    (message,) = caplog.messages
    assert message == (
        "captions without features: 4 of them differ from images with features only by case: 0000.JPG is not 0000.jpg; "
        "write the names as they are in the store"
    )


@pytest.mark.parametrize("line", ['"a.jpg"', "a.jpg 3", "a.jpg\ta dog", "a.jpg#0\ta dog", "# train", "a.jpg, x"])
def test_a_split_list_with_more_than_names_is_refused_with_one_hint(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "list.txt", f"b.jpg\n{line}\n")
    with pytest.raises(
        AnnotationError, match=r"list.txt: line 2 is .*; a list has one path per line and nothing else$"
    ):
        read_split_list(path, known_keys=["a.jpg", "b.jpg"])


def test_images_of_two_folders_with_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    for name in ("p/a.jpg", "q/a.jpg"):
        write(tmp_path / name, "")
        write(tmp_path / f"{name.removesuffix('.jpg')}.txt", "a dog")
    assert error_of([tmp_path / "p", tmp_path / "q"]) == (
        f"{tmp_path}/q: file a.txt is about {tmp_path}/q/a.jpg, but {tmp_path}/p/a.jpg has the same name: give only "
        "the folder above both"
    )
    (tmp_path / "q/a.jpg").unlink()  # a second person's captions of the same images
    annotations = read_annotations([tmp_path / "p", tmp_path / "q"], known_keys=["a.jpg"])
    assert annotations.captions == {"a.jpg": ("a dog", "a dog")}


def test_a_text_file_belongs_to_the_image_whose_accent_is_typed_in_another_way(tmp_path: Path) -> None:
    write(tmp_path / "e\u0301.jpg", "")
    write(tmp_path / "\xe9.txt", "a dog")
    assert read_annotations(tmp_path).captions == {"e\u0301.jpg": ("a dog",)}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"bbox": [1, 2, 3, 4], "category_id": 1, "segmentation": []}, "objects, as instances_*.json is"),
        ({"bbox": [1, 2, 3, 4], "category_id": 1, "keypoints": [0]}, "keypoints, as person_keypoints_*.json is"),
        ({"segments_info": []}, "segments, as panoptic_*.json is"),
    ],
)
def test_annotations_of_other_files_of_coco_are_called_so(tmp_path: Path, fields: dict[str, Any], kind: str) -> None:
    path = tmp_path / "a.json"
    images = [{"id": 1, "file_name": "a.jpg"}]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 1, **fields}] * 3}))
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    wanted = "give the file with captions of the same images, captions_*.json"
    assert str(caught.value) == f"{path}: COCO annotations of {kind}, without captions; {wanted}"
    path.write_text(json.dumps({"info": {}, "images": images, "categories": []}))
    with pytest.raises(AnnotationError, match=r"a\.json: COCO's list of images without annotations, as image_info_"):
        read_annotations(path)
