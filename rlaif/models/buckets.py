"""Rate limits as buckets that fill with time: the user's own, and those a provider tells of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from rlaif.progress import say

MINUTE_S = 60.0
PARTS = ("limit", "remaining", "reset")
"""How the headers of one limit end."""
SAID_S = 10.0
"""A wait of so long is said."""
CLOCKS = timedelta(seconds=2)
"""A provider's Date is of whole seconds: what is as near as this is our own time, better told."""
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Told(NamedTuple):
    """What a provider's headers say of one limit."""

    kind: str
    limit: float
    remaining: float
    full_in_s: float
    """Seconds until the whole limit is there again."""


class Bucket:
    """Holds what may be asked at once; every call takes from it, time fills it.

    A call that needs more than the bucket holds goes when it is full, and leaves it in debt.
    """

    def __init__(self, size: float, rate: float, level: float, at: float, *, tokens: bool) -> None:
        """`rate` a second."""
        self._size = size
        self._rate = rate
        self._level = level
        self._at = at
        self._tokens = tokens

    @classmethod
    def a_minute(cls, most: int, *, tokens: bool) -> Bucket:
        """Never more than `most` in any minute: what may go at once is taken off the rate."""
        size = max(1.0, most / (20 if tokens else 60))
        rate = max(most - size, most / 2) / MINUTE_S
        return cls(size, rate, size, float("-inf"), tokens=tokens)

    @classmethod
    def as_told(cls, told: Told, now: float) -> Bucket:
        """As the provider's own bucket stands."""
        bucket = cls(told.limit, 0.0, told.remaining, now, tokens="tokens" in told.kind)
        bucket.adopt(told, now)
        return bucket

    def adopt(self, told: Told, now: float) -> None:
        """Others may use the same account: what the provider says remains is what there is. How
        fast it fills follows from how long it takes to be full."""
        self._fill(now)
        self._size = told.limit
        self._level = min(self._level, told.remaining)
        missing = told.limit - told.remaining
        if missing > 0 and told.full_in_s > 0:
            self._rate = missing / told.full_in_s
        if not self._rate:
            self._rate = told.limit / MINUTE_S

    def wait_s(self, tokens: int, now: float) -> float:
        """Seconds until a call of so many tokens may go."""
        self._fill(now)
        need = min(float(tokens) if self._tokens else 1.0, self._size)
        return max(0.0, (need - self._level) / self._rate)

    def take(self, tokens: int, now: float) -> None:
        """One call goes."""
        self._fill(now)
        self._level -= tokens if self._tokens else 1.0

    def correct(self, unused: int) -> None:
        """A call has used so many tokens less than was guessed."""
        if self._tokens:
            self._level = min(self._size, self._level + unused)

    def _fill(self, now: float) -> None:
        if self._at != float("-inf"):
            self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


class Held(NamedTuple):
    """What a call must wait for."""

    seconds: float
    why: str
    told: bool
    """Whether it is a limit of which the provider's headers tell."""


class Pace:
    """What holds back all who ask one model: the user's limits, the provider's, and pauses."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._told: set[str] = set()
        """Which of them are the provider's."""
        self._paused_until = float("-inf")
        self._paused_for = ""
        self._said_until = float("-inf")

    def limit(self, field: str, most: int | None) -> None:
        """Takes over what the user allows a minute: requests, or tokens."""
        name = f"{field} is {most}"
        if most is not None and name not in self._buckets:
            self._buckets[name] = Bucket.a_minute(most, tokens="tokens" in field)

    def heard(self, headers: Mapping[str, str], now: float) -> None:
        """Takes over what a provider tells of its limits."""
        for told in told_by(headers):
            bucket = self._buckets.get(told.kind)
            if bucket is None:
                self._buckets[told.kind] = Bucket.as_told(told, now)
                self._told.add(told.kind)
            else:
                bucket.adopt(told, now)

    def pause(self, seconds: float, why: str, now: float) -> None:
        """Lets nothing in for so long."""
        if now + seconds > self._paused_until:
            self._paused_until, self._paused_for = now + seconds, why

    def is_paused(self, now: float) -> bool:
        """Whether a pause is not over."""
        return now < self._paused_until

    def held(self, tokens: int, now: float) -> Held | None:
        """What a call of so many tokens must wait for; None: nothing."""
        if self._paused_until > now:
            held = Held(self._paused_until - now, self._paused_for, told=False)
        else:
            wait_s, kind = 0.0, ""
            for name, bucket in self._buckets.items():
                if (own := bucket.wait_s(tokens, now)) > wait_s:
                    wait_s, kind = own, name
            if not kind:
                return None
            told = kind in self._told
            held = Held(wait_s, f"the provider's limit of {kind}" if told else kind, told)
        if held.seconds >= SAID_S and now + held.seconds > self._said_until + 1:
            self._said_until = now + held.seconds
            say(f"waiting {held.seconds:.0f} s: {held.why}")
        return held

    def take(self, tokens: int, now: float) -> None:
        """One call goes."""
        for bucket in self._buckets.values():
            bucket.take(tokens, now)

    def correct(self, unused: int) -> None:
        """A call has used so many tokens less than was guessed."""
        for bucket in self._buckets.values():
            bucket.correct(unused)


def told_by(headers: Mapping[str, str]) -> Iterator[Told]:
    """The limits in the headers of OpenAI (`x-ratelimit-limit-requests`, times like `6m0.5s`) and
    of Anthropic (`anthropic-ratelimit-requests-limit`, times as RFC 3339). Names in lower case."""
    for kind in ("requests", "tokens"):
        three = [headers.get(f"x-ratelimit-{part}-{kind}") for part in PARTS]
        yield from _told(kind, three, _span_s)
    # Anthropic also tells input and output tokens apart. A call's tokens are one number here, so
    # the limit that it tells of both together is the one that is kept.
    for kind in ("requests", "tokens"):
        three = [headers.get(f"anthropic-ratelimit-{kind}-{part}") for part in PARTS]
        yield from _told(kind, three, lambda text: _until_s(text, provider_time(headers)))


def _told(kind: str, three: list[str | None], seconds: Callable[[str], float]) -> Iterator[Told]:
    limit, remaining, reset = three
    if limit is None or remaining is None or reset is None:
        return
    try:
        told = Told(kind, float(limit), float(remaining), seconds(reset))
    except ValueError:
        return  # a header that is not of the known form tells nothing
    if told.limit > 0:
        yield told


def _span_s(text: str) -> float:
    """Seconds of `1h2m3.5s`, `20ms`, or a plain number of seconds."""
    if re.fullmatch(r"[\d.]+", text):
        return float(text)
    if not re.fullmatch(r"(?:[\d.]+(?:ms|[smhd]))+", text):
        raise ValueError(text)
    return sum(float(n) * UNITS_S[unit] for n, unit in re.findall(r"([\d.]+)(ms|[smhd])", text))


def _until_s(text: str, now: datetime) -> float:
    """Seconds from `now` to a time as RFC 3339."""
    then = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return max(0.0, (then - now).total_seconds())


def provider_time(headers: Mapping[str, str]) -> datetime:
    """The time by the clock of whoever sent these headers, names in lower case."""
    ours = datetime.now(UTC)
    try:
        theirs = parsedate_to_datetime(headers["date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return ours
    return theirs if abs(theirs - ours) > CLOCKS else ours
