"""Many at once, in order, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.models.flow import Channel, flow


@settings(deadline=None, max_examples=40)
@given(
    waits=st.lists(st.integers(0, 3), max_size=20),
    window=st.integers(1, 6),
    lazily=st.booleans(),
)
def test_results_are_handed_over_in_order_and_no_more_than_the_window_is_begun(
    waits: list[int], window: int, lazily: bool
) -> None:
    begun = most = 0
    got: list[int] = []

    async def work(item: tuple[int, int]) -> int:
        nonlocal begun, most
        begun += 1
        most = max(most, begun - len(got))
        for _ in range(item[1]):
            await asyncio.sleep(0)
        return item[0]

    async def items() -> AsyncIterator[tuple[int, int]]:
        for item in enumerate(waits):
            await asyncio.sleep(0)
            yield item

    async def main() -> None:
        await flow(items() if lazily else enumerate(waits), work, got.append, window=window)

    asyncio.run(main())
    assert got == list(range(len(waits)))
    # One more may stand at the door, and one be on its way out.
    assert most <= window + 2


def test_an_error_of_one_item_ends_all_and_is_raised() -> None:
    cancelled = []

    async def work(item: int) -> int:
        try:
            await asyncio.sleep(0 if item == 1 else 0.001 if item == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        if item == 1:
            raise ZeroDivisionError
        return item

    got: list[int] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(flow(range(10), work, got.append, window=3))
    assert got == [0]
    assert cancelled
    assert set(cancelled) < set(range(2, 10))


def test_an_error_of_the_source_is_raised_after_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    async def work(item: int) -> int:
        return item

    got: list[int] = []
    with pytest.raises(OSError, match="gone"):
        asyncio.run(flow(source(), work, got.append, window=3))
    assert got == [1]


def test_a_channel_holds_the_sender_back_and_ends_with_it() -> None:
    async def main() -> tuple[list[int], int]:
        channel: Channel[int] = Channel(2)
        sent = ahead = 0

        async def send() -> None:
            nonlocal sent
            for i in range(10):
                await channel.put(i)
                sent += 1
            await channel.close()

        sender = asyncio.create_task(send())
        got = []
        async for item in channel:
            ahead = max(ahead, sent - len(got))
            got.append(item)
            await asyncio.sleep(0)
        await sender
        return got, ahead

    got, ahead = asyncio.run(main())
    assert got == list(range(10))
    assert ahead <= 4
