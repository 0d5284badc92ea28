"""Work that threads do ahead of whoever takes its results."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, ahead: int
) -> Generator[Result, None, None]:
    """What `function` returns for each of `items`, in their order, with up to `ahead` of them under way in `pool`.

    As `Executor.map` with its `buffersize`, which Python has from 3.14 on. When nobody takes more, what has not begun
    is cancelled.
    """
    pending: deque[Future[Result]] = deque()
    remaining = iter(items)
    try:
        while True:
            pending.extend(pool.submit(function, item) for item in itertools.islice(remaining, ahead - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
