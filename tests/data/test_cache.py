"""What is kept in the cache is whole, bounded and never needed."""

import os
from pathlib import Path

import pytest

from captionmill.data.cache import Cache, key_of
from captionmill.data.models.source import find_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("CAPTIONMILL_CACHE", str(tmp_path / "cache"))
    return Cache("things", most_bytes=1000)


def keep(cache: Cache, key: str, content: str = "word") -> Path | None:
    return cache.keep(key, lambda folder: [(folder / "a.txt").write_text(content)].clear())


def test_what_was_kept_is_found_by_what_it_was_made_from(cache: Cache, tmp_path: Path) -> None:
    key = key_of("things", 1, ["a", None])
    assert cache.find(key) is None
    assert keep(cache, key) == cache.find(key) == tmp_path / "cache" / "things" / key
    assert cache.find(key_of("things", 1, ["a", "None"])) is None


def test_of_two_that_make_it_at_once_the_first_is_kept(cache: Cache, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        keep(cache, "key", "other")
        (folder / "a.txt").write_text("mine")

    entry = cache.keep("key", fill)
    assert entry is not None
    assert (entry / "a.txt").read_text() == "other"
    assert sorted(path.name for path in (tmp_path / "cache" / "things").iterdir()) == ["key"]


@pytest.mark.parametrize("name", ["a.txt", "sha256.json"])
@pytest.mark.parametrize("content", [None, "worm", "", "{"])
def test_what_is_damaged_is_removed_and_can_be_kept_again(cache: Cache, name: str, content: str | None) -> None:
    entry = keep(cache, "key")
    assert entry is not None
    (entry / name).unlink() if content is None else (entry / name).write_text(content)
    assert cache.find("key") is None
    assert not entry.exists()
    assert keep(cache, "key") == cache.find("key") == entry


def test_what_was_used_longest_ago_goes_first(cache: Cache) -> None:
    for age, key in enumerate(("newest", "older", "oldest"), 1):
        entry = keep(cache, key, "x" * 200)
        assert entry is not None
        os.utime(entry, ns=(0, 10**18 - age))
    assert cache.find("oldest")  # which is a use
    keep(cache, "new", "x" * 200)
    assert [key for key in ("newest", "older", "oldest", "new") if cache.find(key)] == ["newest", "oldest", "new"]
    keep(cache, "large", "x" * 2000)
    assert [key for key in ("newest", "oldest", "new", "large") if cache.find(key)] == ["large"]


def test_what_a_killed_process_has_begun_goes_after_a_day(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "things"
    for name, time_s in ((".begun.1", 0), (".begun.2", None)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, None if time_s is None else (time_s, time_s))
    keep(cache, "key")
    assert sorted(path.name for path in folder.iterdir()) == [".begun.2", "key"]


def test_where_nothing_can_be_written_nothing_is_kept(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert keep(cache, "key") is None
    assert cache.find("key") is None


def test_a_user_without_a_home_has_no_cache(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CAPTIONMILL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert keep(cache, "key") is None
    assert cache.find("key") is None
    (tmp_path / "model.tar").touch()
    with pytest.raises(OSError, match="this user has no home; name a folder in CAPTIONMILL_CACHE"):
        find_model(tmp_path / "model.tar")


def test_an_error_of_another_kind_leaves_nothing_behind(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.keep("key", lambda folder: [1 // 0].clear())
    assert list((tmp_path / "cache" / "things").iterdir()) == []
