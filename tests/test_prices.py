"""What a reply costs, and whose price it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.errors import SetupError
from rlaif.models.prices import OURS, Price, Prices
from rlaif.types import ChatReply, Choice
from rlaif.yamlfile import YamlFile

PRICE = Price(input=2.0, output=8.0, cached_input=0.5, cache_write=2.5)


@pytest.fixture(autouse=True)
def no_file_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLAIF_PRICES", raising=False)


def reply(prompt: int, completion: int, **fields: object) -> ChatReply:
    return ChatReply.model_validate(
        {
            "choices": (Choice(text="A", finish_reason="stop"),),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            **fields,
        }
    )


def price(model: str, file: Path | None = None) -> Price:
    found = Prices.load(file).of(model)
    assert found is not None
    return found


def written(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_plain_reply_costs_its_prompt_and_its_answer() -> None:
    # 1000 x 2 $/M + 100 x 8 $/M = 0.0020 + 0.0008
    assert PRICE.usd(reply(1000, 100)) == pytest.approx(0.0028)


def test_cached_and_written_tokens_are_part_of_the_prompt_and_cost_their_own_price() -> None:
    # 1000 tokens: 600 cached, 300 written, 100 plain = 600 x 0.5 + 300 x 2.5 + 100 x 2 = 1250 $/M
    billed = PRICE.usd(reply(1000, 0, cached_tokens=600, cache_write_tokens=300))
    assert billed == pytest.approx(0.00125)


def test_a_batched_reply_costs_half() -> None:
    assert PRICE.usd(reply(1000, 100, batched=True)) == pytest.approx(0.0014)


def test_a_cache_without_a_price_of_its_own_costs_as_input() -> None:
    plain = Price(input=2.0, output=8.0)
    assert plain.usd(reply(1000, 0, cached_tokens=600)) == pytest.approx(0.002)


@pytest.mark.parametrize(
    "model", ["fake/policy", "embedded/tiny-random", "vllm/ORG/NAME", "transformers/out/dpo"]
)
def test_models_on_our_own_machine_cost_nothing(model: str) -> None:
    assert price(model).usd(reply(1000, 1000)) == 0.0


@pytest.mark.parametrize(
    ("model", "as_is"),
    [
        ("openai/gpt-4.1-2025-04-14", "openai/gpt-4.1"),
        ("openai/gpt-4.1-mini-2025-04-14", "openai/gpt-4.1-mini"),
        ("anthropic/claude-sonnet-4-20250514", "anthropic/claude-sonnet-4"),
        ("anthropic/claude-3-5-haiku-latest", "anthropic/claude-3-5-haiku"),
    ],
)
def test_a_dated_snapshot_costs_what_its_base_name_does(model: str, as_is: str) -> None:
    assert price(model) == price(as_is)


def test_a_snapshot_with_a_price_of_its_own_keeps_it() -> None:
    assert price("openai/gpt-4o-2024-05-13").input == 5.0
    assert price("openai/gpt-4o-2024-11-20").input == 2.5


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-5-other",
        "openai/gpt-99",
        "anthropic/claude-opus-4-99",
        "http://localhost:8000/v1#gpt-4o",
    ],
)
def test_an_unknown_model_has_no_price_rather_than_none_to_pay(model: str) -> None:
    assert Prices.load(None).of(model) is None


def test_the_users_file_comes_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(
        tmp_path,
        "models:\n"
        "  openai/gpt-4o: {input: 1, output: 2}\n"
        "  http://localhost:8000/v1#mine: {input: 3, output: 4}\n"
        "  vllm/ORG/NAME: {input: 5, output: 6}\n",
    )
    assert price("openai/gpt-4o", file).input == 1
    assert price("openai/gpt-4o-2024-05-13", file).input == 1
    assert price("http://localhost:8000/v1#mine", file).output == 4
    assert price("vllm/ORG/NAME", file).output == 6
    assert price("openai/gpt-4.1", file) == price("openai/gpt-4.1")
    monkeypatch.setenv("RLAIF_PRICES", str(file))
    assert price("openai/gpt-4o").input == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  openai/x: {inptu: 1, output: 2}\n", ":2: models.openai/x.inptu: no such"),
        ("models:\n  openai/x:\n    input: -1\n    output: 2\n", ":3: models.openai/x.input: "),
        ("models:\n  openia/x: {input: 1, output: 2}\n", ":2: models: unknown model 'openia/x'"),
        ("models:\n  openai/x: {input: 1}\n", ":2: models.openai/x.output: is missing"),
    ],
)
def test_a_bad_price_file_is_told_with_line_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SetupError) as error:
        Prices.load(written(tmp_path, text))
    assert said in str(error.value)


def test_every_price_of_ours_says_when_and_where_it_was_seen() -> None:
    ours = Prices.load(None)
    for model in YamlFile(OURS).value["models"]:
        found = ours.of(model)
        assert found is not None
        assert found.date is not None, model
        assert found.source.startswith("https://"), model
        assert found.output >= found.input >= (found.cached_input or 0.0), model


def test_a_stored_reply_is_priced_by_what_the_store_knows_of_its_model(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "models:\n"
        "  http://a:8000/v1#mine: {input: 3, output: 4}\n"
        "  http://a:8000/v1#two: {input: 3, output: 4}\n"
        "  http://b:8000/v1#two: {input: 1, output: 4}\n",
    )
    prices, asked = Prices.load(file), reply(1_000_000, 0)
    assert prices.stored("openai/gpt-4o", asked) == 2.5
    assert prices.stored("served/mine", asked) == 3.0
    # Two servers, two prices: the store does not say which of them answered.
    assert prices.stored("served/two", asked) is None
    assert prices.stored("served/other", asked) is None
    for own in ("weights@0123 (dtype=float32)", "vllm/ORG/NAME", "fake/shorter"):
        assert prices.stored(own, asked) == 0.0
