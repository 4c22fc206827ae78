"""Batches through the real SDKs against a server that speaks both protocols."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_server import BatchServer
from conftest import chat_request

from rlaif.callstore import CallStore, call_key
from rlaif.callstore.journal import Batch, Journal
from rlaif.errors import AskingStopped, CallRejected, SetupError, StoreError
from rlaif.models.batch import BatchConfig
from rlaif.models.client import Answer, Bill
from rlaif.models.gate import Budget, Gate
from rlaif.models.pool import ModelConfig, ModelPool
from rlaif.types import ChatReply, ChatRequest

QUICK = BatchConfig(smallest=3, gather_s=0.05, poll_s=0.05, longest_poll_s=0.1)
PROVIDERS = ("openai", "anthropic")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    found = BatchServer()
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}).start()
    for name, value in variables(found).items():
        monkeypatch.setenv(name, value)
    yield found
    found.shutdown()
    found.server_close()


def variables(server: BatchServer) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "ANTHROPIC_BASE_URL": server.url,
        "OPENAI_API_KEY": "sk-of-a-test",
        "ANTHROPIC_API_KEY": "sk-of-a-test",
    }


def ask(
    folder: Path,
    provider: str,
    *texts: str,
    batch: BatchConfig = QUICK,
    bill: Bill | None = None,
    gate: Gate | None = None,
    concurrency: int = 64,
) -> list[Answer]:
    config = ModelConfig(
        model=f"{provider}/m",
        batch=batch,
        usd_per_million_tokens=(100.0, 0.0),
        concurrency=concurrency,
    )

    async def main() -> list[Answer]:
        with CallStore(folder / "calls.sqlite") as store:
            pool = ModelPool(store, folder, {}, gate)
            async with pool.open(config, "policy.model", bill or Bill()) as client:
                requests = [
                    chat_request(t).model_copy(update={"model": client.model.identity})
                    for t in texts
                ]
                return await client.ask_all(requests, lambda done, note: None)

    return asyncio.run(main())


def said(answers: list[Answer]) -> list[str]:
    return [a.choices[0].text if isinstance(a, ChatReply) else type(a).__name__ for a in answers]


TEXTS = tuple(f"Question {i}?" for i in range(12))
BATCHED = [f"batched {text}" for text in TEXTS]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_is_submitted_once_and_its_shuffled_answers_find_their_calls(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    bill = Bill()
    assert said(ask(tmp_path, provider, *TEXTS, bill=bill)) == BATCHED
    assert len(server.batches) == 1
    assert set(server.submitted.values()) == {1}
    assert server.live == 0
    # Half of 12 x 5 prompt tokens at 100 dollars a million.
    assert bill.usd == pytest.approx(12 * 5 * 100 / 1e6 / 2)
    again = Bill()
    assert said(ask(tmp_path, provider, *TEXTS, bill=again)) == BATCHED
    assert (again.calls_from_store, len(server.batches)) == (12, 1)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_many_calls_are_several_batches(server: BatchServer, tmp_path: Path, provider: str) -> None:
    small = QUICK.model_copy(update={"most": 5})
    found = said(ask(tmp_path, provider, *TEXTS, batch=small))
    # The last ones are too few for a batch of their own.
    assert [text.partition(" ")[2] for text in found] == list(TEXTS)
    assert len(server.batches) >= 2
    assert all(len(held.requests) <= 5 for held in server.batches.values())
    assert len(server.submitted) + server.live == 12


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_expired_is_submitted_again_and_nothing_else(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.expires = set(TEXTS[:4])

    def come_in_time() -> None:
        while len(server.batches) < 2:
            time.sleep(0.01)
        server.expires = set()

    threading.Thread(target=come_in_time, daemon=True).start()
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    again = {key for key, times in server.submitted.items() if times == 2}
    assert again == {call_key(of_provider(provider, text)) for text in TEXTS[:4]}
    assert max(server.submitted.values()) == 2


def of_provider(provider: str, text: str) -> ChatRequest:
    return chat_request(text).model_copy(update={"model": f"{provider}/m"})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_batches_fail_twice_goes_live(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.errors = dict.fromkeys(TEXTS[:3], "api_error")
    found = said(ask(tmp_path, provider, *TEXTS))
    assert found == [f"live {t}" for t in TEXTS[:3]] + BATCHED[3:]
    assert server.live == 3
    assert max(server.submitted.values()) == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_call_that_the_provider_refuses_is_a_failed_call_and_asked_once(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.errors = {TEXTS[0]: "invalid_request_error"}
    found = ask(tmp_path, provider, *TEXTS)
    assert isinstance(found[0], CallRejected)
    assert said(found)[1:] == BATCHED[1:]
    assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_that_is_busy_while_it_is_asked_and_looked_at_costs_nothing(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.failing = [503]
    server.ready_after = 3

    def fail_again() -> None:
        while not server.polls:
            time.sleep(0.01)
        server.failing = [500, 429]

    threading.Thread(target=fail_again, daemon=True).start()
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_submit_whose_answer_is_lost_is_found_and_not_sent_again(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.drop_after_submit = True
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_few_calls_go_live(server: BatchServer, tmp_path: Path, provider: str) -> None:
    assert said(ask(tmp_path, provider, "a", "b")) == ["live a", "live b"]
    assert (server.live, len(server.batches)) == (2, 0)


ASKER = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_batches
from rlaif.callstore import CallStore
from rlaif.callstore.journal import Journal

moment = sys.argv[4]
if moment == "before the id is written":
    Journal.submitted = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
if moment == "in the middle of storing":
    put = CallStore.put_many
    CallStore.put_many = lambda self, rows: (
        put(self, rows[:2]), os.kill(os.getpid(), signal.SIGKILL)
    )
test_batches.ask(Path(sys.argv[2]), sys.argv[3], *test_batches.TEXTS)
"""


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "moment", ["before the id is written", "while it is under way", "in the middle of storing"]
)
def test_a_killed_run_takes_up_its_batch_and_submits_nothing_twice(
    server: BatchServer, tmp_path: Path, provider: str, moment: str
) -> None:
    if moment == "while it is under way":
        server.ready_after = 1_000_000
    here = Path(__file__).resolve().parent
    run = subprocess.Popen(
        [sys.executable, "-c", ASKER, str(here), str(tmp_path), provider, moment],
        env={**os.environ, **variables(server), "PYTHONPATH": str(here.parent)},
    )
    if moment == "while it is under way":
        while server.polls < 2:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL
    server.ready_after = 1
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}
    assert len(server.batches) == 1
    journal = Journal(tmp_path / "calls.sqlite")
    assert journal.open(f"{provider}/m") == []
    journal.close()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_run_killed_before_its_batch_was_sent_sends_it(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    with CallStore(tmp_path / "calls.sqlite"):
        journal = Journal(tmp_path / "calls.sqlite")
    keys = tuple(call_key(of_provider(provider, text)) for text in TEXTS)
    journal.intend(Batch("0" * 32, "", f"{provider}/m", time.time(), keys))
    journal.close()
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}


def test_somebody_elses_batch_of_as_many_calls_gives_no_answer_of_ours(
    server: BatchServer, tmp_path: Path
) -> None:
    """Anthropic keeps no token of ours, so a batch may be taken up that is another one's."""
    other = tmp_path / "other"
    assert said(ask(other, "anthropic", *(f"Other {i}" for i in range(12))))[0] == "batched Other 0"
    test_a_run_killed_before_its_batch_was_sent_sends_it(server, tmp_path, "anthropic")


def test_a_budget_ends_a_run_with_batches_and_keeps_them(
    server: BatchServer, tmp_path: Path
) -> None:
    with pytest.raises(AskingStopped):
        ask(tmp_path, "openai", *TEXTS, gate=Gate(Budget(max_calls=8)))
    assert said(ask(tmp_path, "openai", *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}


def test_minutes_end_a_run_that_waits_for_a_batch_and_another_run_takes_it_up(
    server: BatchServer, tmp_path: Path
) -> None:
    server.ready_after = 10_000
    begin = time.monotonic()
    with pytest.raises(AskingStopped, match="--max-minutes"):
        ask(tmp_path, "openai", *TEXTS, gate=Gate(Budget(max_minutes=2 / 60)))
    assert time.monotonic() - begin < 10
    server.ready_after = 1
    assert said(ask(tmp_path, "openai", *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}


def test_minutes_leave_live_calls_beside_batches_to_be_answered_and_stored(
    server: BatchServer, tmp_path: Path
) -> None:
    server.live_delay_s = 3.0
    gate = Gate(Budget(max_minutes=2 / 60))
    assert said(ask(tmp_path, "openai", "a", "b", gate=gate)) == ["live a", "live b"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_live_calls_beside_batches_keep_to_the_providers_limits(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.live_from = time.time() + 2.5
    assert said(ask(tmp_path, provider, "a", "b")) == ["live a", "live b"]
    assert server.live == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_live_calls_beside_batches_keep_to_the_users_concurrency(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.live_delay_s = 0.05
    few = QUICK.model_copy(update={"smallest": 100})
    assert len(ask(tmp_path, provider, *TEXTS, batch=few, concurrency=3)) == 12
    assert (server.live, server.most_live) == (12, 3)


def test_a_batch_that_has_no_room_waits_for_one_and_goes_by_no_other_way(
    server: BatchServer, tmp_path: Path
) -> None:
    server.full, server.ready_after = 1, 40
    small = QUICK.model_copy(update={"most": 6})
    assert said(ask(tmp_path, "openai", *TEXTS, batch=small)) == BATCHED
    assert server.refused, "the second one was refused at first"
    assert server.live == 0


@pytest.mark.parametrize("provider", PROVIDERS)
def test_live_calls_in_flight_are_stored_when_asking_is_cancelled(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.live_delay_s = 0.5
    config = ModelConfig(model=f"{provider}/m", batch=QUICK)

    def both_have_come() -> None:
        while server.live < 2:
            time.sleep(0.01)

    async def main() -> None:
        with CallStore(tmp_path / "calls.sqlite") as store:
            async with ModelPool(store, tmp_path, {}).open(config, "policy.model", Bill()) as asked:
                requests = [of_provider(provider, text) for text in TEXTS[:2]]
                asking = asyncio.create_task(asked.ask_all(requests, lambda done, note: None))
                await asyncio.to_thread(both_have_come)
                asking.cancel()
            assert len(store) == 2

    asyncio.run(main())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_clock_that_is_wrong_by_hours_submits_nothing_twice(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.clock -= 3 * 3600
    server.drop_after_submit = True
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_that_the_provider_has_no_more_is_forgotten_and_asked_again(
    server: BatchServer, tmp_path: Path, provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with CallStore(tmp_path / "calls.sqlite"):
        journal = Journal(tmp_path / "calls.sqlite")
    keys = tuple(call_key(of_provider(provider, text)) for text in TEXTS)
    journal.intend(Batch("0" * 32, "batch_of_another_key", f"{provider}/m", time.time(), keys))
    server.gone = True

    def there_again() -> None:
        while len(server.batches) < 1:
            time.sleep(0.01)
        server.gone = False

    threading.Thread(target=there_again, daemon=True).start()
    assert said(ask(tmp_path, provider, *TEXTS)) == BATCHED
    assert "has batch batch_of_another_key no more" in capsys.readouterr().err
    assert journal.open(f"{provider}/m") == []
    journal.close()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_provider_that_is_busy_when_a_lost_batch_is_looked_for_is_asked_again(
    server: BatchServer, tmp_path: Path, provider: str
) -> None:
    server.failing = [503, 500]
    test_a_run_killed_before_its_batch_was_sent_sends_it(server, tmp_path, provider)
    assert server.failing == []


def test_two_clients_of_one_model_leave_each_others_batches_alone(
    server: BatchServer, tmp_path: Path
) -> None:
    config = ModelConfig(model="openai/m", batch=QUICK)
    server.ready_after, server.submit_delay_s = 10, 0.5

    async def main() -> list[list[Answer]]:
        with CallStore(tmp_path / "calls.sqlite") as store:
            pool = ModelPool(store, tmp_path, {})

            async def one(texts: tuple[str, ...], after_s: float) -> list[Answer]:
                await asyncio.sleep(after_s)
                async with pool.open(config, "policy.model", Bill()) as client:
                    requests = [of_provider("openai", text) for text in texts]
                    return await client.ask_all(requests, lambda done, note: None)

            # The second one comes while the first one's batch is under way.
            return await asyncio.gather(one(TEXTS[:6], 0.0), one(TEXTS[6:], 0.25))

    first, second = asyncio.run(main())
    assert said(first) + said(second) == BATCHED
    assert (len(server.batches), set(server.submitted.values())) == (2, {1})


def test_a_batch_that_was_never_written_down_is_an_error(tmp_path: Path) -> None:
    with CallStore(tmp_path / "calls.sqlite"):
        journal = Journal(tmp_path / "calls.sqlite")
    with pytest.raises(StoreError, match="batch b1 was never written down"):
        journal.submitted("0" * 32, "b1")
    journal.close()


def test_a_batch_that_cannot_be_written_down_is_not_sent_and_hangs_nobody(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StoreError("a batch could not be written down: disk full")

    monkeypatch.setattr(Journal, "intend", full)
    with pytest.raises(StoreError, match="disk full"):
        ask(tmp_path, "openai", *TEXTS)
    assert not server.batches


def test_a_model_without_a_batch_api_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(model="fake/policy", batch=QUICK)

    async def main() -> None:
        with CallStore(tmp_path / "calls.sqlite") as store:
            async with ModelPool(store, tmp_path, {}).open(config, "policy.model", Bill()):
                pass

    with pytest.raises(SetupError, match=r"policy\.batch: fake/policy has no batch API"):
        asyncio.run(main())
