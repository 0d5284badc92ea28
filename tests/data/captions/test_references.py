import json
import logging
import os
from collections import Counter
from pathlib import Path
from threading import Thread

import pytest
from builders import FLICKR8K

from captionmill.data.captions.formats.rows import FORMATS
from captionmill.data.captions.references import Annotations, read_annotations, read_split_list
from captionmill.data.captions.splits import split_by_image
from captionmill.data.errors import AnnotationError
from captionmill.data.tables.formats import TableFormat, write_captions
from captionmill.data.tables.rows import CaptionRow


def write(path: Path, content: str | bytes | object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def error_of(path: Path, content: str | bytes | object) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(write(path, content))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


COCO = {
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "none.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "A cat."},
        {"id": 2, "image_id": 7, "caption": "A dog."},
        {"id": 3, "image_id": 3, "caption": "One cat. "},
    ],
}
KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A cat."}, {"raw": "One cat."}]},
        {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "A dog."}]},
        {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "A cow."}]},
        {"filename": "d.jpg", "filepath": "val2014", "split": "restval", "sentences": [{"raw": "A pig."}]},
    ]
}


def test_token_file_gives_captions_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path / "x", 'b.jpg#1\tA dog .\r\nb.jpg#0\tSecond, "dog"\r\n\r\n./in//a.jpg.1#0\tA cat \r\n')
    assert read_annotations(path) == Annotations({"b.jpg": ("A dog .", 'Second, "dog"'), "in/a.jpg.1": ("A cat",)}, {})


def test_token_line_without_a_number_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    message = error_of(tmp_path / "x", "a.jpg#0\tA cat\n\nb.jpg A dog\n")
    assert message == "line 3 is not of the form name.jpg#0<TAB>caption: 'b.jpg A dog'"


def test_token_line_without_an_image_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "x", "#0\tA cat\n") == "line 1 has no image name; fill it in or remove the line"


def test_kaggle_csv_keeps_commas_quotes_newlines_and_words_that_look_like_missing_values(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.txt",
        'image,caption\na.jpg,None\na.jpg,NA\na.jpg,"red, ""big"" car"\nb.jpg,"two\nlines"\nb.jpg,1.0\n',
    )
    assert read_annotations(path).captions == {
        "a.jpg": ("None", "NA", 'red, "big" car'),
        "b.jpg": ("two\nlines", "1.0"),
    }


def test_csv_columns_come_in_any_order_and_case_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.csv",
        b"\xef\xbb\xbfSplit,Caption,id, Image\r\ntrain,A cat,1,a.jpg\r\nDev,A dog,2,in\\b.jpg\r\n"
        b"validation,A pig,3,c.jpg\r\nvalid,A cow,4,d.jpg\r\nval,A hen,5,e.jpg\r\ntest,A fox,6,f.jpg\r\n",
    )
    annotations = read_annotations(path)
    assert annotations.captions["in/b.jpg"] == ("A dog",)
    assert annotations.keys_of("train") == ["a.jpg"]
    assert annotations.keys_of("val") == ["c.jpg", "d.jpg", "e.jpg", "in/b.jpg"]
    assert annotations.keys_of("test") == ["f.jpg"]


def test_the_empty_rows_of_a_spreadsheet_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "image;caption;notes\r\na.jpg;A cat;\r\n;;\r\n\r\nb.jpg;A dog;new\r\n;; \r\n;\r\n")
    assert read_annotations(path).captions == {"a.jpg": ("A cat",), "b.jpg": ("A dog",)}
    assert error_of(path, "image;caption\na.jpg;A cat\n;\n;A dog\n") == (
        "row 4 has no image name; fill it in or remove the row"
    )


def test_tsv_reads_like_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", 'caption\tsplit\timage\nA cat, asleep\ttest\ta.jpg\n"a\ttab"\ttrain\tb.jpg\n')
    assert read_annotations(path) == Annotations(
        {"a.jpg": ("A cat, asleep",), "b.jpg": ("a\ttab",)}, {"a.jpg": "test", "b.jpg": "train"}
    )


def test_flickr30k_results_csv_is_split_at_bars_and_keeps_bare_quotes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "results.csv",
        'image_name| comment_number| comment\na.jpg| 0| A man says " hi " .\na.jpg| 1| " Two men , one hat .\n',
    )
    assert read_annotations(path).captions == {"a.jpg": ('A man says " hi " .', '" Two men , one hat .')}


def test_flickr30k_row_without_its_last_bar_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        tmp_path / "r.csv", "image_name| comment_number| comment\na.jpg| 0| A man .\na.jpg| 4   A dog runs .\n"
    )
    with caplog.at_level(logging.WARNING):
        assert read_annotations(path).captions == {"a.jpg": ("A man .",)}
    assert caplog.messages == [f"{path}: left out 1 captions without text"]


def test_coco_json_pairs_captions_by_image_id(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", COCO)
    assert read_annotations(path) == Annotations({"a.jpg": ("A cat.", "One cat."), "b.jpg": ("A dog.",)}, {})


def test_karpathy_json_gives_splits_and_puts_restval_into_train(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path / "x.json", KARPATHY))
    assert annotations.captions["a.jpg"] == ("A cat.", "One cat.")
    assert annotations.splits == {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test", "val2014/d.jpg": "train"}


def test_karpathy_restval_can_be_dropped(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path / "x.json", KARPATHY), restval="drop")
    assert sorted(annotations.captions) == sorted(annotations.splits) == ["a.jpg", "b.jpg", "c.jpg"]


def test_unknown_restval_choice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"restval is 'keep'; choose one of train, drop"):
        read_annotations(write(tmp_path / "x.json", KARPATHY), restval="keep")


def test_a_corrected_table_of_captions_can_be_trained_on(tmp_path: Path) -> None:
    rows = ("a.jpg,A dog,0.9,,ok,", "d/b.jpg,,,,failed,damaged", "'=c.jpg,'-5,0.1,,ok,")
    table = "\n".join(("path,caption,confidence,flags,status,error", *rows))
    captions = {"a.jpg": ("A dog",), "=c.jpg": ("-5",)}
    assert read_annotations(write(tmp_path / "captions.csv", table)).captions == captions


def test_a_name_with_spaces_at_its_ends_is_no_other_name_in_our_own_table(tmp_path: Path) -> None:
    texts = {"a.jpg": "a dog", " a.jpg": "a cat", "\ta.jpg": "a cup", "b.jpg ": "a hat", "b.jpg": "a car"}
    rows = [CaptionRow(key, text, None, status="corrected") for key, text in texts.items()]
    formats: tuple[TableFormat, ...] = ("csv", "jsonl", "parquet")
    for table_format in formats:
        path = tmp_path / f"captions.{table_format}"
        write_captions(path, rows, table_format, with_alternatives=False)
        found = read_annotations(path).captions
        assert found == {key: (text,) for key, text in texts.items()}


def test_accents_typed_apart_from_their_letters_are_put_together(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "a.jpg#0\tein Ma\u0308dchen\na.jpg#1\tein M\u00e4dchen\n")
    assert read_annotations(path).captions == {"a.jpg": ("ein M\u00e4dchen", "ein M\u00e4dchen")}


def test_captions_without_text_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "x.csv", "image,caption,split\na.jpg,,train\na.jpg,A cat,train\nb.jpg,  ,test\n")
    with caplog.at_level(logging.WARNING):
        assert read_annotations(path) == Annotations({"a.jpg": ("A cat",)}, {"a.jpg": "train"})
    assert caplog.messages == [f"{path}: left out 2 captions without text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (b"image,caption\na.jpg,caf\xe9\n", "not UTF-8 text; save it as UTF-8 and try again"),
        (
            "hello\nworld\n",
            f"unknown format; expected {FORMATS}",
        ),
        ("image,caption\n", "no captions in this file"),
        ("image,caption\na.jpg,\n", "no captions in this file"),
        ("image,caption\n,A cat\n", "row 2 has no image name; fill it in or remove the row"),
        (
            "image,caption,split\na.jpg,A cat,train\na.jpg,One cat,dev\n",
            "row 3 puts a.jpg in val, but it is in train already",
        ),
        ("image,caption,split\na.jpg,A cat,fold1\n", "row 2 has the split 'fold1'; use train, val or test"),
        ("image,caption,split\na.jpg,A cat,\n", "row 2 has the split ''; use train, val or test"),
        (
            "image,caption\na.jpg,A cat\nb.jpg,red, big car\n",
            "damaged table (Expected 2 fields in line 3, saw 3); put quotes around captions that contain ','",
        ),
        (
            "image,caption\na.jpg,red, big car\n",
            "damaged table (Expected 2 fields in line 2, saw 3); put quotes around captions that contain ','",
        ),
        (
            'image,caption\na.jpg,"A cat\n',
            "line 2 opens a quote that nothing closes: remove it, or complete the caption if it was cut",
        ),
        (
            '{"images": [',
            "not valid JSON (Expecting value: line 1 column 13 (char 12)); download or export the file again",
        ),
        (
            COCO | {"annotations": [{"image_id": 5, "caption": "A cat."}]},
            "annotations[0] is about image 5, which is not among the images of the file",
        ),
        (
            COCO | {"annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}]},
            (
                "COCO annotations of objects, as instances_*.json is, without captions; give the file with captions of "
                "the same images, captions_*.json"
            ),
        ),
        (
            COCO | {"annotations": [{"image_id": 3, "text": "A cat."}]},
            "annotations[0] has no usable 'caption'; download or export the file again",
        ),
        (
            COCO | {"annotations": [{"caption": "A cat."}]},
            "annotations[0] has no usable 'image_id'; download or export the file again",
        ),
        (COCO | {"annotations": []}, "no captions in this file"),
        (COCO | {"annotations": {}}, "the file has no usable 'annotations'; download or export the file again"),
        (
            COCO | {"images": [{"id": 3, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}]},
            "images[1] has the id 3 of a.jpg; every image needs its own",
        ),
        (
            {"images": [{"filename": "a.jpg", "sentences": [{"raw": "A cat."}]}]},
            "images[0] has no usable 'split'; download or export the file again",
        ),
        (
            {"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "A cat."}, {"tokens": []}]}]},
            "images[0].sentences[1] has no usable 'raw'; download or export the file again",
        ),
        (
            {"images": [{"filename": "a.jpg", "split": "all", "sentences": [{"raw": "A cat."}]}]},
            "images[0] has the split 'all'; use train, val or test",
        ),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, content: object, message: str) -> None:
    assert error_of(tmp_path / "x", content) == message


def test_table_without_the_columns_names_those_it_has(tmp_path: Path) -> None:
    message = error_of(tmp_path / "x.csv", "file,caption\na.jpg,A cat\n")
    assert message.startswith("needs the columns image and caption, but has: file, caption; expected a Flickr token")


@pytest.mark.parametrize("content", [[1, 2], {"captions": []}, {"images": []}, {"images": [1]}])
def test_other_json_is_an_error_that_names_the_formats(tmp_path: Path, content: object) -> None:
    message = error_of(tmp_path / "x.json", content)
    assert message.startswith("unknown JSON, without images and annotations (COCO) or sentences (Karpathy); expected a")


def test_deeply_nested_json_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "x.json", "[" * 200_000).startswith("not valid JSON (")


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"gone.csv: cannot be read \(No such file or directory\)$"):
        read_annotations(tmp_path / "gone.csv")
    with pytest.raises(AnnotationError, match=r": a folder without captions: it has no .txt files beside its images$"):
        read_annotations(tmp_path)


def test_split_list_keeps_order_and_drops_blank_lines_and_repeats(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", b"\xef\xbb\xbfb.jpg\r\n\r\n./a.jpg \r\nb.jpg\r\nin\\c.jpg")
    assert read_split_list(path) == ["b.jpg", "a.jpg", "in/c.jpg"]


def test_missing_or_empty_split_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"gone.txt: cannot be read"):
        read_split_list(tmp_path / "gone.txt")
    with pytest.raises(AnnotationError, match=r"empty.txt: the file is empty$"):
        read_split_list(write(tmp_path / "empty.txt", "\n \n"))


def test_split_by_image_depends_only_on_the_set_of_keys_and_the_seed() -> None:
    keys = [f"{number}.jpg" for number in range(100)]
    splits = split_by_image(keys, seed=1)
    assert splits == split_by_image([*reversed(keys), "5.jpg"], seed=1)
    assert [key for key, split in splits.items() if split == "val"] == [
        "24.jpg",
        "40.jpg",
        "45.jpg",
        "49.jpg",
        "65.jpg",
    ]
    assert [key for key, split in splits.items() if split == "test"] == ["1.jpg", "18.jpg", "41.jpg", "5.jpg", "79.jpg"]
    assert splits != split_by_image(keys, seed=2)


def test_split_by_image_of_three_gives_one_image_to_each_split() -> None:
    assert sorted(split_by_image(["a", "b", "c"], seed=0).values()) == ["test", "train", "val"]


@pytest.mark.parametrize(("count", "held_out"), [(9, 1), (10, 2), (29, 2), (30, 2), (100, 5)])
def test_split_by_image_holds_out_two_images_where_there_are_ten(count: int, held_out: int) -> None:
    counts = Counter(split_by_image(map(str, range(count)), seed=0).values())
    assert counts == {"train": count - 2 * held_out, "val": held_out, "test": held_out}


def test_split_by_image_says_how_many_images_it_needs() -> None:
    with pytest.raises(AnnotationError, match=r"^cannot split 2 images; 3 or more with captions are needed$"):
        split_by_image(["a", "b", "a"], seed=0)


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="needs ../shared/flickr8k")
def test_real_flickr8k_has_its_published_numbers() -> None:
    annotations = read_annotations(FLICKR8K / "Flickr8k.token.txt")
    train, val, test = (read_split_list(FLICKR8K / f"Flickr_8k.{name}Images.txt") for name in ("train", "dev", "test"))
    assert len(annotations.captions) == 8092
    assert {len(captions) for captions in annotations.captions.values()} == {5}
    assert annotations.captions["2258277193_586949ec62.jpg.1"][0] == "people waiting for the subway"
    assert annotations.splits == {}
    assert (len(train), len(val), len(test)) == (6000, 1000, 1000)
    assert len({*train, *val, *test}) == 8000
    assert {*train, *val, *test} < annotations.captions.keys()


def test_captions_of_an_image_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text('image,caption\na.jpg,"two lines,\nof one caption"\nb.jpg,a\0b\na.jpg, second \n')
    captions = read_annotations(path).captions
    assert dict(captions) == {"a.jpg": ("two lines,\nof one caption", "second"), "b.jpg": ("a\0b",)}
    assert "a.jpg" in captions
    assert "c.jpg" not in captions
    with pytest.raises(KeyError):
        captions["c.jpg"]


def pipe(path: Path, content: str) -> Path:
    """A pipe that gives `content` to whoever opens it, once."""
    os.mkfifo(path)
    Thread(target=path.write_text, args=(content,), daemon=True).start()
    return path


def test_captions_and_lists_are_read_from_a_pipe(tmp_path: Path) -> None:
    annotations = read_annotations(pipe(tmp_path / "captions", "image,caption\na.jpg,a dog\n"))
    assert {key: list(texts) for key, texts in annotations.captions.items()} == {"a.jpg": ["a dog"]}
    assert read_split_list(pipe(tmp_path / "list", "a.jpg\nb.jpg\n")) == ["a.jpg", "b.jpg"]
