"""Splits by lists, by the captions file, or drawn; what is left out is named."""

import pytest

from captionmill.data.captions.references import Annotations
from captionmill.data.captions.splits import choose_splits
from captionmill.data.errors import AnnotationError

CAPTIONS: dict[str, tuple[str, ...]] = {key: (f"caption of {key}",) for key in "abcdef"}


def test_lists_decide_and_what_is_in_none_is_named() -> None:
    splits = choose_splits(Annotations(CAPTIONS, {}), set("abcdx"), train_list=["a", "b", "y"], val_list=["c"])
    assert (splits.train, splits.val, splits.test) == (["a", "b"], ["c"], [])
    assert splits.unmatched == {
        "captions without features": ["e", "f"],
        "features without captions": ["x"],
        "in a split without captions": ["y"],
        "in no split": ["d"],
    }


def test_the_captions_files_own_splits_come_next() -> None:
    own = {"a": "train", "b": "val", "c": "test"}
    splits = choose_splits(Annotations(CAPTIONS, own), set("abcdef"))
    assert (splits.train, splits.val, splits.test) == (["a"], ["b"], ["c"])
    assert splits.unmatched == {"in no split": ["d", "e", "f"]}


def test_without_any_split_images_are_drawn_90_5_5_from_the_seed() -> None:
    captions: dict[str, tuple[str, ...]] = {f"{number:03d}": ("x",) for number in range(200)}
    first, again, other = (choose_splits(Annotations(captions, {}), captions, seed=seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.val), len(first.test)) == (180, 10, 10)
    assert first == again
    assert first.test != other.test
    assert sorted(first.train + first.val + first.test) == sorted(captions)


def test_an_image_in_both_lists_is_an_error() -> None:
    with pytest.raises(AnnotationError, match="1 images are in the training and in the validation list, b first"):
        choose_splits(Annotations(CAPTIONS, {}), set("abc"), train_list=["a", "b"], val_list=["b"])


def test_one_list_without_the_other_is_an_error() -> None:
    with pytest.raises(AnnotationError, match="give both or neither"):
        choose_splits(Annotations(CAPTIONS, {}), set("abc"), train_list=["a"])


@pytest.mark.parametrize(("own", "message"), [({"a": "train"}, "in split val"), ({"a": "val"}, "in split train")])
def test_an_empty_split_is_an_error(own: dict[str, str], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        choose_splits(Annotations(CAPTIONS, own), set("abc"))


def test_no_common_key_is_an_error_that_shows_one_of_each() -> None:
    with pytest.raises(AnnotationError, match="the captions name a, the feature store photos/a"):
        choose_splits(Annotations(CAPTIONS, {}), {"photos/a", "photos/b"})
    by_drive: dict[str, tuple[str, ...]] = {"C:/me/garden/b.jpg": ("x",), "C:/me/garden/gone.jpg": ("x",)}
    with pytest.raises(
        AnnotationError, match=r"name C:/me/garden/b\.jpg, the feature store garden/b\.jpg; write paths"
    ):
        choose_splits(Annotations(by_drive, {}), {"a.jpg", "garden/b.jpg"})
