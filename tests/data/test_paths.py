"""A path is one path, as a string too."""

from pathlib import Path

import pytest

from captionmill.data.paths import AnyPaths, as_location, as_path, as_paths


def test_a_string_is_a_path_and_none_stays_none() -> None:
    assert as_path("a/b") == as_path(Path("a/b")) == Path("a/b")
    assert as_path(None) is None


@pytest.mark.parametrize("paths", ["model", Path("model"), ["model"], (Path("model"),), iter(["model"])])
def test_one_path_is_a_list_of_one(paths: AnyPaths) -> None:
    assert as_paths(paths) == [Path("model")]


def test_several_paths_stay_in_their_order() -> None:
    assert as_paths(["b", Path("a")]) == [Path("b"), Path("a")]
    assert as_paths([]) == []


def test_a_url_is_not_broken() -> None:
    assert as_location("s3://bucket/a.jpg") == "s3://bucket/a.jpg"
    assert as_location("photos") == Path("photos")
