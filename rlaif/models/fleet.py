"""Several servers behind one name: the least loaded is asked, and one that fails is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from zlib import crc32

from rlaif.errors import CallTransient, SetupError
from rlaif.models.base import ChatModel
from rlaif.progress import say
from rlaif.types import ChatReply, ChatRequest

PREFIX = 1000
"""Calls whose first so many characters are the same are sent to the same server, if its load
allows: its prefix cache has them."""
SLACK = 1.25
"""The load, against the least, that sending a prefix to its own server may cost."""
FIRST_REST_S, TELLING_REST_S, LONGEST_REST_S = 1.0, 8.0, 60.0


class _Member:
    def __init__(self, model: ChatModel, name: str) -> None:
        self.model = model
        self.name = name
        self.in_flight = 0
        self.rests_until = 0.0
        self.rest_s = 0.0


class Fleet(ChatModel):
    """Asks the same model on several servers. A server whose call fails in passing rests for a
    second, then for twice as long each time; the call goes to another one at once, and only when
    none is left does it count as failed."""

    def __init__(
        self,
        models: Sequence[tuple[str, ChatModel]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Address -> the model there; all serve the same one."""
        self._members = [_Member(model, name) for name, model in models]
        first = models[0][1]
        self.identity = first.identity
        self.gives_logprobs = first.gives_logprobs
        self.max_n = min(model.max_n for _, model in models)
        self._clock = clock

    async def check(self) -> None:
        """Raises the first server's SetupError where none can be used."""
        failed: list[tuple[_Member, SetupError]] = []
        for member in self._members:
            try:
                await member.model.check()
            except SetupError as e:
                failed.append((member, e))
        if len(failed) == len(self._members):
            raise failed[0][1]
        for member, error in failed:
            say(f"{error}; the other servers are asked")
            self._members.remove(member)
            await member.model.aclose()

    async def first_tokens(self, texts: Sequence[str]) -> list[int] | None:
        return await self._members[0].model.first_tokens(texts)

    async def probe_logprobs(self) -> bool | None:
        return await self._members[0].model.probe_logprobs()

    async def ask(self, request: ChatRequest) -> ChatReply:
        tried: list[_Member] = []
        while True:
            member = self._choose(request, tried)
            tried.append(member)
            member.in_flight += 1
            member.model.heard = self.heard
            try:
                reply = await member.model.ask(request)
            except CallTransient as e:
                self._rest(member, e)
                if len(tried) == len(self._members):
                    raise
            else:
                member.rest_s = member.rests_until = 0.0
                return reply
            finally:
                member.in_flight -= 1

    def _choose(self, request: ChatRequest, tried: Sequence[_Member]) -> _Member:
        now = self._clock()
        left = [m for m in self._members if m not in tried]
        # A server that rests is asked when no other is left: somebody must find out.
        awake = [m for m in left if m.rests_until <= now] or left
        least = min(m.in_flight for m in awake)
        text = "".join(m.content for m in request.messages)[:PREFIX]
        own = awake[crc32(text.encode()) % len(awake)]
        if own.in_flight <= least * SLACK + 1:
            return own
        return min(awake, key=lambda m: m.in_flight)

    def _rest(self, member: _Member, error: CallTransient) -> None:
        now, wait_s = self._clock(), error.wait_s
        # Calls that fail together are one failure.
        if member.rests_until <= now:
            member.rest_s = min(max(2 * member.rest_s, FIRST_REST_S), LONGEST_REST_S)
            if member.rest_s == TELLING_REST_S:
                say(f"{member.name} fails again and again: {error}; the other servers are asked")
            member.rests_until = now + (member.rest_s if wait_s is None else wait_s)

    async def aclose(self) -> None:
        for member in self._members:
            await member.model.aclose()
