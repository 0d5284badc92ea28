"""Whatever is written, dropped, interrupted and merged: a store holds what a dict would."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from builders import make_spec
from hypothesis import given
from hypothesis import strategies as draw
from properties import few

from captionmill.data.features.file import Features
from captionmill.data.features.merge import merge_stores
from captionmill.data.features.store import FeatureStore
from captionmill.data.features.writer import FeatureWriter

KEYS = ["a.jpg", "B/a.jpg", "b.jpg", "ä.jpg", "a\u0308.jpg", "日.png", " .jpg", "a\nb.jpg"]
ROWS = draw.dictionaries(draw.sampled_from(KEYS), draw.integers(-99, 99), max_size=5)


@dataclass(frozen=True)
class Session:
    """What one writer does: rows are dropped, then added in several calls."""

    dropped: set[str]
    added: list[dict[str, int]]
    is_interrupted: bool


SESSIONS = draw.lists(
    draw.builds(Session, draw.sets(draw.sampled_from(KEYS), max_size=2), draw.lists(ROWS, max_size=3), draw.booleans()),
    min_size=1,
    max_size=4,
)


def row_of(number: int) -> Features:
    return np.arange(number, number + 8, dtype=np.float32)


def write(path: Path, session: Session) -> None:
    with FeatureWriter(path, make_spec(), dtype="float16", made_by={}, flush_every=2) as writer:
        writer.drop(session.dropped)
        for rows in session.added:
            writer.add(list(rows), np.array([row_of(number) for number in rows.values()]).reshape(-1, 8))
        if session.is_interrupted:
            raise KeyboardInterrupt


def assert_holds(path: Path, rows: Mapping[str, int]) -> None:
    store = FeatureStore.open(path)
    assert store.keys == sorted(rows)
    assert [store[key].tolist() for key in store.keys] == [row_of(rows[key]).tolist() for key in store.keys]
    assert store.verify() == []


@few
@given(SESSIONS)
def test_a_store_holds_what_a_dict_would_after_every_writer(sessions: list[Session]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, expected = Path(name, "f.h5"), {"first.jpg": 0}
        write(path, Session(set(), [expected], is_interrupted=False))
        for session in sessions:
            if session.is_interrupted:
                with pytest.raises(KeyboardInterrupt):
                    write(path, session)
            else:
                write(path, session)
            for key in session.dropped:
                expected.pop(key, None)
            expected = expected | {key: row for rows in session.added for key, row in rows.items()}
            assert_holds(path, expected)
        write(Path(name, "at once.h5"), Session(set(), [expected], is_interrupted=False))
        assert FeatureStore.open(path).digest() == FeatureStore.open(Path(name, "at once.h5")).digest()


@few
@given(ROWS, draw.lists(draw.integers(0, 2), min_size=len(KEYS), max_size=len(KEYS)))
def test_stores_that_share_no_key_are_merged_as_dicts_would_be(rows: dict[str, int], shares: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, f"{number}.h5") for number in range(3)]
        expected = rows | {path.name: 0 for path in paths}
        for number, path in enumerate(paths):
            mine = {key: row for key, row in rows.items() if shares[KEYS.index(key)] == number}
            write(path, Session(set(), [{path.name: 0} | mine], is_interrupted=False))
        merge_stores(paths, Path(name, "all.h5"))
        assert_holds(Path(name, "all.h5"), expected)
