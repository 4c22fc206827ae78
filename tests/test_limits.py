"""How fast a provider is asked. Time is a loop's own: an hour passes in a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from conftest import chat_request
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import in_virtual_time

from rlaif.callstore import CallStore
from rlaif.errors import (
    CallError,
    CallRateLimited,
    CallRejected,
    CallTransient,
    ProviderDown,
)
from rlaif.models.buckets import Pace, Told, told_by
from rlaif.models.client import Bill
from rlaif.models.limits import FAILURES, FIRST_REFUSALS, Limiter, Limits
from rlaif.models.pool import ModelConfig, ModelPool

Provider = Callable[[float, int], Awaitable[CallError | None]]
"""Time and calls in flight -> what becomes of a call."""


class Log:
    """What a provider saw."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended: list[tuple[float, CallError | None]] = []
        self.in_flight = self.most = 0
        self.order: list[int] = []

    @property
    def answered(self) -> int:
        return sum(error is None for _, error in self.ended)


async def ask_many(
    limiter: Limiter, calls: int, provider: Provider, log: Log, tokens: int = 10
) -> None:
    """Every call is tried until it is answered or refused for good."""
    now = asyncio.get_running_loop().time

    async def one(number: int) -> None:
        first = True
        while True:
            await limiter.enter(tokens)
            log.in_flight += 1
            log.most = max(log.most, log.in_flight)
            log.started.append(start := now())
            log.order.append(number)
            error = await provider(start, log.in_flight)
            log.in_flight -= 1
            log.ended.append((now(), error))
            limiter.leave(error, tokens, tokens, now() - start, first=first)
            first = False
            if not isinstance(error, CallTransient):
                return

    await asyncio.gather(*(one(i) for i in range(calls)))


def simulated(
    limits: Limits, concurrency: int, calls: int, provider: Provider, tokens: int = 10
) -> tuple[Log, Limiter, float]:
    log = Log()

    async def main() -> tuple[Limiter, float]:
        limiter = Limiter(limits, concurrency=concurrency, seed=0)
        await ask_many(limiter, calls, provider, log, tokens)
        return limiter, asyncio.get_running_loop().time()

    limiter, seconds = in_virtual_time(main)
    return log, limiter, seconds


async def quick(now: float, in_flight: int) -> None:
    await asyncio.sleep(0.1)


def test_calls_go_in_in_the_order_in_which_they_came_and_never_too_many() -> None:
    log, _, seconds = simulated(Limits(), 8, 100, quick)
    assert log.order == list(range(100))
    assert log.most == 8
    assert seconds == pytest.approx(13 * 0.1, abs=0.05)


@settings(deadline=None, max_examples=15)
@given(most=st.integers(20, 600), concurrency=st.integers(1, 40))
def test_no_minute_has_more_calls_than_the_user_allows_and_few_go_to_waste(
    most: int, concurrency: int
) -> None:
    calls = 3 * most
    log, _, seconds = simulated(Limits(requests_per_minute=most), concurrency, calls, quick)
    for i, start in enumerate(log.started):
        in_minute = sum(start <= other < start + 60 for other in log.started[i : i + most + 2])
        assert in_minute <= most
    slowest = max(60 / most, 0.1 / concurrency)
    assert seconds <= 1.12 * calls * slowest + 1


def test_tokens_a_minute_are_kept_and_a_wrong_guess_is_put_right() -> None:
    _, _, seconds = simulated(Limits(tokens_per_minute=6000), 64, 300, quick, tokens=100)
    assert 300 / (seconds / 60) <= 60 * 1.1
    assert 300 / (seconds / 60) >= 60 * 0.9

    async def main() -> float:
        limiter = Limiter(Limits(tokens_per_minute=6000), concurrency=64)
        for _ in range(300):
            await limiter.enter(1000)  # guessed; really 10
            limiter.leave(None, 1000, 10, 0.0)
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main) < 300 * 10 / 100 + 10


def test_a_provider_that_tells_its_limits_is_never_asked_too_often() -> None:
    """60 calls a minute, told in OpenAI's headers; what is over is refused."""
    log = Log()
    level, at = 60.0, 0.0

    async def main() -> float:
        limiter = Limiter(Limits(), concurrency=64, seed=0)

        async def provider(now: float, in_flight: int) -> CallError | None:
            nonlocal level, at
            level, at = min(60.0, level + now - at), now
            refused = level < 1
            level -= 0 if refused else 1
            limiter.heard(
                {
                    "x-ratelimit-limit-requests": "60",
                    "x-ratelimit-remaining-requests": str(int(level)),
                    "x-ratelimit-reset-requests": f"{60 - level:.3f}s",
                }
            )
            await asyncio.sleep(0.1)
            return CallRateLimited("slow down", 1.0) if refused else None

        await ask_many(limiter, 400, provider, log)
        return asyncio.get_running_loop().time()

    seconds = in_virtual_time(main)
    assert not [e for t, e in log.ended if e is not None and t > 60]
    assert seconds <= (400 - 60) / 0.9


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (
            {
                "x-ratelimit-limit-tokens": "150000",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "6m0.5s",
            },
            [Told("tokens", 150_000, 149_984, 360.5)],
        ),
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "20ms",
            },
            [Told("requests", 60, 59, 0.02)],
        ),
        ({"x-ratelimit-limit-requests": "60"}, []),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "soon",
            },
            [],
        ),
    ],
)
def test_headers_are_read_as_the_providers_write_them(
    headers: dict[str, str], told: list[Told]
) -> None:
    assert [t._replace(full_in_s=pytest.approx(t.full_in_s)) for t in told_by(headers)] == told


def test_anthropics_times_are_read() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "10",
        "anthropic-ratelimit-requests-reset": "2099-01-01T00:00:00Z",
    }
    (told,) = told_by(headers)
    assert told.full_in_s > 1e9


@pytest.mark.parametrize("behind_s", [-3600, 0, 3600])
def test_a_wrong_clock_of_ours_makes_no_wait_longer_or_shorter(behind_s: int) -> None:
    theirs = datetime.now(UTC) + timedelta(seconds=behind_s)
    headers = {
        "date": format_datetime(theirs, usegmt=True),
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": (theirs + timedelta(seconds=60)).isoformat(),
    }
    (told,) = told_by(headers)
    assert told.full_in_s == pytest.approx(60, abs=2)


def test_a_date_that_is_none_leaves_our_own_clock() -> None:
    headers = {
        "date": "yesterday",
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    (told,) = told_by(headers)
    assert told.full_in_s == pytest.approx(3600, abs=2)


def test_a_limit_that_lets_nothing_in_for_hours_ends_the_run_and_says_so() -> None:
    async def main() -> float:
        limiter = Limiter(Limits(), concurrency=4)
        limiter.heard(only(remaining=0, reset="24h"))
        with pytest.raises(ProviderDown, match=r"limit of requests .* 1440 minutes; all that"):
            await limiter.enter(1)
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main) < 1


def test_long_waits_are_said_once_with_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    async def by_headers() -> None:
        limiter = Limiter(Limits(), concurrency=4)
        limiter.heard(only(remaining=0, reset="80s"))
        await asyncio.gather(*(limiter.enter(1) for _ in range(2)))

    async def by_refusal() -> None:
        limiter = Limiter(Limits(adapt=False), concurrency=4)
        for _ in range(4):
            await limiter.enter(1)
        limiter.leave(CallRateLimited("slow down", 40.0), 1, 0, 0.1)
        waiting = asyncio.gather(*(limiter.enter(1) for _ in range(4)))
        await asyncio.sleep(10)
        limiter.leave(CallRateLimited("slow down", 5.0), 1, 0, 20.0)
        limiter.leave(None, 1, 0, 20.0)
        limiter.leave(None, 1, 0, 20.0)
        await waiting

    in_virtual_time(by_headers)
    said = "waiting 80 s: the provider's limit of requests"
    assert capsys.readouterr().err.splitlines() == [said, said]
    in_virtual_time(by_refusal)
    said = "waiting 40 s: the provider asks us to (slow down)"
    assert capsys.readouterr().err.splitlines() == [said]


def only(remaining: int, reset: str) -> dict[str, str]:
    """OpenAI's headers of a limit of a single call."""
    return {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": reset,
    }


def test_one_refusal_holds_back_all_calls_for_as_long_as_it_says() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.01)
        return CallRateLimited("slow down", 7.5) if now < 5 else None

    log, _, _ = simulated(Limits(), 4, 20, provider)
    assert len([t for t in log.started if t < 7.5]) == 4
    assert min(t for t in log.started if t > 1) == pytest.approx(7.51, abs=0.02)
    assert log.answered == 20


def test_a_busy_provider_that_says_how_long_is_left_alone_for_so_long() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.01)
        return CallTransient("503", 30.0) if now < 5 else None

    log, _, _ = simulated(Limits(), 4, 20, provider)
    assert len([t for t in log.started if t < 30]) == 4
    assert log.answered == 20


def test_a_busy_provider_that_asks_for_an_hour_ends_the_run() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        return CallTransient("503", 3600.0)

    with pytest.raises(ProviderDown, match=r"wait for 60 minutes \(503\)"):
        simulated(Limits(), 2, 5, provider)


def test_refusals_that_come_together_and_say_no_time_are_one_refusal() -> None:
    """20 calls a second and 5 at once, by a provider that never says how long to wait."""
    level, at = 5.0, 0.0

    async def provider(now: float, in_flight: int) -> CallError | None:
        nonlocal level, at
        level, at = min(5.0, level + 20 * (now - at)), now
        refused = level < 1
        level -= 0 if refused else 1
        await asyncio.sleep(0.02)
        return CallRateLimited("slow down") if refused else None

    log, _, seconds = simulated(Limits(), 64, 400, provider)
    assert log.answered == 400
    assert seconds < 3 * 400 / 20


def test_refusals_that_say_no_time_and_go_on_hold_back_longer_each_time() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.01)
        return CallRateLimited("slow down") if now < 60 else None

    log, _, _ = simulated(Limits(), 16, 20, provider)
    assert log.answered == 20
    assert len([1 for t in log.started if t < 60]) < 80


def test_a_wait_of_an_hour_ends_the_run_and_says_so() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        return CallRateLimited("no more today", 3600)

    with pytest.raises(ProviderDown, match=r"wait for 60 minutes \(no more today\); all that was"):
        simulated(Limits(), 2, 5, provider)


def test_a_provider_that_is_down_for_a_minute_is_waited_for_and_asked_with_single_calls() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.05)
        return CallTransient("503") if 2 < now < 60 else None

    log, _, seconds = simulated(Limits(), 16, 2000, provider)
    assert log.answered == 2000
    assert seconds < 110
    assert len([1 for t, e in log.ended if e is not None]) < 60


def test_a_provider_that_is_gone_is_given_up_with_its_last_words() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.05)
        return CallTransient("connection refused")

    log = Log()

    async def main() -> float:
        limiter = Limiter(Limits(), concurrency=8, seed=0)
        with pytest.raises(ProviderDown, match="nothing any more, last: connection refused"):
            await ask_many(limiter, 100, provider, log)
        with pytest.raises(ProviderDown):
            await limiter.enter(1)
        return asyncio.get_running_loop().time()

    assert 60 < in_virtual_time(main) < 200
    assert len(log.started) < 50


def test_a_run_whose_first_calls_are_all_refused_alike_stops() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.01)
        return CallRejected("temperature is not supported")

    with pytest.raises(ProviderDown, match="each of the first 50 calls was refused: temperature"):
        simulated(Limits(), 4, 500, provider)


def test_refusals_of_some_calls_stop_nothing() -> None:
    asked = 0

    async def provider(now: float, in_flight: int) -> CallError | None:
        nonlocal asked
        asked = number = asked + 1
        await asyncio.sleep(0.01)
        return None if number == FIRST_REFUSALS - 1 else CallRejected("too long")

    log, _, _ = simulated(Limits(), 4, 500, provider)
    assert log.answered == 1


def saturating(best: int, answers_a_second: float) -> Provider:
    """Answers take longer the more are in flight above `best`, and much longer far above."""

    async def provider(now: float, in_flight: int) -> CallError | None:
        thrash = 1 + max(0, in_flight - 2 * best) / best
        await asyncio.sleep(max(in_flight, best) / answers_a_second * thrash)
        return None

    return provider


def test_a_server_that_is_full_is_still_kept_full() -> None:
    fixed = Limits(adapt=False)
    best = min(simulated(fixed, c, 4000, saturating(32, 200))[2] for c in (16, 32, 64))
    _, _, seconds = simulated(Limits(), 64, 4000, saturating(32, 200))
    assert best / seconds >= 0.95


def test_an_instant_server_gets_the_whole_window() -> None:
    log, limiter, _ = simulated(Limits(), 64, 500, quick)
    assert (log.most, limiter.window) == (64, 64)


def test_a_cancelled_wait_loses_no_place() -> None:
    async def main() -> int:
        limiter = Limiter(Limits(), concurrency=2)
        await limiter.enter(1)
        await limiter.enter(1)
        waits = [asyncio.ensure_future(limiter.enter(1)) for _ in range(4)]
        await asyncio.sleep(0)
        waits[0].cancel()
        limiter.leave(None, 1, 1, 0.1)
        waits[1].cancel()  # it has been let in, and does not know yet
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        limiter.leave(None, 1, 1, 0.1)
        await asyncio.wait_for(asyncio.gather(*waits[2:]), 5)
        return sum(w.cancelled() for w in waits)

    assert in_virtual_time(main) == 2


def test_a_few_calls_that_never_pass_are_no_provider_that_is_down() -> None:
    tries = 0

    async def provider(now: float, in_flight: int) -> CallError | None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.05)
        return CallTransient("500") if tries <= 300 else None

    log, _, seconds = simulated(Limits(), 64, 15, provider)
    assert log.answered == 15
    assert seconds < 3


def test_a_whole_window_that_fails_at_once_is_one_failure_and_not_many_probes() -> None:
    async def provider(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.05)
        return CallTransient("503") if now < 3 else None

    log, _, seconds = simulated(Limits(), 64, 300, provider)
    assert log.answered == 300
    assert seconds < 10
    assert len([1 for _, e in log.ended if e is not None]) <= 64 + FAILURES + 4


def test_failures_in_passing_do_not_narrow_the_window_and_refusals_do_for_a_while() -> None:
    tries = 0

    async def flaky(now: float, in_flight: int) -> CallError | None:
        nonlocal tries
        tries += 1
        number = tries
        await asyncio.sleep(0.1)
        return CallTransient("500") if number % 10 == 0 else None

    _, limiter, _ = simulated(Limits(), 32, 1000, flaky)
    assert limiter.window == 32

    async def strict(now: float, in_flight: int) -> CallError | None:
        await asyncio.sleep(0.1)
        return CallRateLimited("slow down", 0.5) if in_flight > 20 else None

    log, limiter, seconds = simulated(Limits(), 32, 4000, strict)
    assert log.answered == 4000
    assert 14 <= limiter.window <= 22
    assert seconds <= 4000 / (20 / 0.1) / 0.6


def test_two_stages_that_ask_one_model_share_its_limits_and_its_pauses(tmp_path: Path) -> None:
    """120 calls a minute are 2 a second at once and 118 a minute then, whoever asks."""
    config = ModelConfig(model="fake/policy", limits=Limits(requests_per_minute=120))
    other = config.model_copy(update={"model": "fake/shorter"})

    async def asked(run: str, *configs: ModelConfig) -> float:
        with CallStore(tmp_path / f"{run}.sqlite") as store:
            pool = ModelPool(store, tmp_path, {})

            async def stage(number: int, config: ModelConfig) -> None:
                async with pool.open(config, "policy.model", Bill()) as client:
                    requests = [chat_request(f"{number}.{i}?") for i in range(60)]
                    await client.ask_all(requests, lambda done, note: None)

            await asyncio.gather(*(stage(i, c) for i, c in enumerate(configs)))
            return asyncio.get_running_loop().time()

    alone = in_virtual_time(lambda: asked("alone", config))
    assert alone == pytest.approx(58 * 60 / 118, abs=1)
    assert in_virtual_time(lambda: asked("apart", config, other)) == pytest.approx(alone, abs=1)
    both = in_virtual_time(lambda: asked("both", config, config))
    assert both == pytest.approx(118 * 60 / 118, abs=1)


def test_of_two_limits_for_one_model_the_lower_holds_for_both_stages() -> None:
    async def main() -> float:
        pace = Pace()
        for most in (600, 60):
            Limiter(Limits(requests_per_minute=most), concurrency=9, pace=pace)
        limiter = Limiter(Limits(requests_per_minute=600), concurrency=9, pace=pace)
        await ask_many(limiter, 60, quick, Log())
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main) == pytest.approx(60, abs=2)
