import asyncio
from collections.abc import Mapping

from rlaif.types import Record


class Limits(Record):
    adapt: bool = True
    """x"""


class Limiter:
    def __init__(self, limits: Limits, *, concurrency: int) -> None:
        self.s = asyncio.Semaphore(concurrency)

    async def enter(self, tokens: int) -> None:
        await self.s.acquire()

    def leave(self, error: Exception | None, tokens: int, seconds: float) -> None:
        self.s.release()

    def heard(self, headers: Mapping[str, str]) -> None: ...
