"""Load items in threads, one batch ahead of its use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from .images import without_warnings

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


def load_batches(chunks: Iterable[Sequence[T]], load: Callable[[T], U], collate: Callable[[list[U]], V]) -> Iterator[V]:
    """Yield collate([load(item), ...]) of each chunk; while one chunk is used, threads load the next chunk."""
    with without_warnings(), ThreadPoolExecutor() as pool:
        ahead: list[Future[U]] | None = None
        for chunk in chain(chunks, [None]):
            ready, ahead = ahead, None if chunk is None else [pool.submit(load, item) for item in chunk]
            if ready is not None:
                yield collate([future.result() for future in ready])
