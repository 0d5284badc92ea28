"""Rows are read in other processes, however they were started."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from builders import add_part, make_rows, make_store

from captionmill.data.features.store import FeatureStore


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_rows_are_read_in_processes_of_any_start_method(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    rows = make_rows(4)
    path = make_store(tmp_path / "f.h5", ["a", "b", "c"], rows[:3])
    add_part(path, ["b"], rows[3:])
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store["b"], rows[3])
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as processes:
        futures = [processes.submit(store.read, positions) for positions in ([0, 1, 2], [2, 1], [0])]
        read = [future.result() for future in futures]
    for found, expected in zip(read, ([0, 3, 2], [2, 3], [0]), strict=True):
        np.testing.assert_array_equal(found, rows[expected])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_processes_read_the_store_that_their_parent_opened(tmp_path: Path) -> None:
    rows = make_rows(4)
    path = make_store(tmp_path / "f.h5", ["a", "b", "c"], rows[:3])
    add_part(path, ["b"], rows[3:])
    store = FeatureStore.open(path)
    np.testing.assert_array_equal(store["a"], rows[0])

    def send_rows(connection: Connection) -> None:
        connection.send((store.keys, store.read([2, 1, 0]), store.verify()))

    context = multiprocessing.get_context("fork")
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send_rows, args=(sender,))
        process.start()
        sender.close()
        keys, read, damaged = receiver.recv()
        process.join()
        assert (process.exitcode, keys, damaged) == (0, ["a", "b", "c"], [])
        np.testing.assert_array_equal(read, rows[[2, 3, 0]])
        receiver.close()
    np.testing.assert_array_equal(store.read([2, 1, 0]), rows[[2, 3, 0]])
