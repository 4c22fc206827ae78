"""Work on a stream of items: many at once, results in order, constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Stream = Iterable[T] | AsyncIterable[T]


async def flow(
    items: Stream[T],
    work: Callable[[T], Awaitable[R]],
    hand_over: Callable[[R], Awaitable[None] | None],
    *,
    window: int,
) -> None:
    """Starts `work` on up to `window` items at once, in their order, and hands the results over in
    that order too: a slow item holds back what was finished after it, `window` items at most.

    The first error of an item, of `items` or of `hand_over` ends everything and is raised; the work
    that is under way is cancelled.
    """
    # What waits here is bounded, so a million items need no more memory than `window` of them.
    under_way: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue(window)

    async def feed() -> None:
        try:
            async for item in _each(items):
                begun = asyncio.ensure_future(work(item))
                try:
                    await under_way.put(begun)
                except asyncio.CancelledError:
                    begun.cancel()
                    raise
        except Exception as e:
            failed: asyncio.Future[R] = asyncio.get_running_loop().create_future()
            failed.set_exception(e)
            await under_way.put(failed)
        else:
            await under_way.put(None)

    feeder = asyncio.create_task(feed())
    try:
        while (result := await under_way.get()) is not None:
            try:
                told = hand_over(await result)
            finally:
                result.cancel()
            if told is not None:
                await told
    finally:
        feeder.cancel()
        rest: list[asyncio.Future[R]] = []
        while not under_way.empty():
            if (left := under_way.get_nowait()) is not None:
                left.cancel()
                rest.append(left)
        await asyncio.gather(feeder, *rest, return_exceptions=True)


class Channel(Generic[T]):
    """Items on their way from one task to another, `size` of them at most."""

    def __init__(self, size: int) -> None:
        self._items: asyncio.Queue[tuple[T] | None] = asyncio.Queue(size)

    async def put(self, item: T) -> None:
        """Waits while the channel is full."""
        await self._items.put((item,))

    async def close(self) -> None:
        """The last thing that the sender does: ends the receiver's loop."""
        await self._items.put(None)

    async def __aiter__(self) -> AsyncIterator[T]:
        while (item := await self._items.get()) is not None:
            yield item[0]


async def _each(items: Stream[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
