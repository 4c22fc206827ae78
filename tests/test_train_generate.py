from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import AutoTokenizer

from rlaif.errors import CallRejected, SetupError
from rlaif.train.generate import TransformersModel
from rlaif.train.tiny import make_tiny
from rlaif.types import ChatReply, ChatRequest, Message, Sampling


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


@pytest.fixture(scope="module")
def model(directory: str) -> TransformersModel:
    return TransformersModel(directory, "tiny@0")


def request_of(text: str = "Hello", **sampling: object) -> ChatRequest:
    settings = {"max_tokens": 12, "temperature": 1.0, **sampling}
    return ChatRequest(
        model="tiny@0",
        messages=(Message(role="user", content=text),),
        sampling=Sampling.model_validate(settings),
    )


def ask(model: TransformersModel, request: ChatRequest) -> ChatReply:
    return asyncio.run(model.ask(request))


def test_the_same_request_gets_the_same_answer_whatever_came_between(
    model: TransformersModel, directory: str
) -> None:
    first = ask(model, request_of(n=3))
    ask(model, request_of("something else"))
    torch.manual_seed(99)
    assert ask(model, request_of(n=3)) == first
    assert ask(TransformersModel(directory, "tiny@0"), request_of(n=3)) == first


def test_seed_and_repeat_ask_for_other_answers(model: TransformersModel) -> None:
    texts = {
        ask(model, request).choices[0].text
        for request in (
            request_of(),
            request_of(seed=1),
            request_of().model_copy(update={"repeat": 1}),
        )
    }
    assert len(texts) == 3


def test_n_samples_differ_and_are_counted(model: TransformersModel) -> None:
    reply = ask(model, request_of(n=4, max_tokens=10))
    assert len({choice.text for choice in reply.choices}) == 4
    assert 4 <= reply.completion_tokens <= 40
    assert reply.prompt_tokens == len("user\nHello\nassistant\n") + 3


def test_requests_at_once_answer_as_they_do_alone(model: TransformersModel) -> None:
    requests = [request_of(str(n)) for n in range(4)]

    async def together() -> list[ChatReply]:
        return list(await asyncio.gather(*(model.ask(request) for request in requests)))

    assert asyncio.run(together()) == [ask(model, request) for request in requests]


def test_temperature_zero_takes_the_likeliest_token(model: TransformersModel) -> None:
    reply = ask(model, request_of(temperature=0.0, n=2, max_tokens=1, top_logprobs=3))
    assert len(reply.choices) == 2
    assert reply.choices[0] == reply.choices[1]
    assert reply.choices[0].text == reply.choices[0].first_token[0].token


def test_alternatives_are_the_models_own_whatever_the_temperature(
    model: TransformersModel,
) -> None:
    cold, hot = (
        ask(model, request_of(temperature=t, top_p=0.5, top_logprobs=20)).choices[0].first_token
        for t in (0.1, 2.0)
    )
    assert cold == hot
    assert len(cold) == 20
    assert [a.logprob for a in cold] == sorted((a.logprob for a in cold), reverse=True)
    everything = model._model(
        **model._tokenizer(
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt"
        )
    ).logits[0, -1]
    assert cold[0].logprob == pytest.approx(everything.log_softmax(-1).max().item(), abs=1e-5)


def test_an_answer_cut_by_the_limit_says_length_and_an_ended_one_stop(
    model: TransformersModel,
) -> None:
    cut = ask(model, request_of(max_tokens=1, n=8))
    assert {choice.finish_reason for choice in cut.choices} == {"length"}
    long = ask(model, request_of(max_tokens=400, n=8))
    stopped = [choice for choice in long.choices if choice.finish_reason == "stop"]
    assert stopped
    assert not any("<|im_end|>" in choice.text for choice in long.choices)
    assert long.completion_tokens < 8 * 400


def test_the_tokens_of_an_answer_are_told_where_they_are_asked_for_and_change_nothing(
    model: TransformersModel, directory: str
) -> None:
    told = ask(model, request_of(n=3, token_ids=True))
    plain = ask(model, request_of(n=3))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for choice, same in zip(told.choices, plain.choices, strict=True):
        assert same.token_ids == ()
        assert choice.text == same.text
        assert tokenizer.decode(choice.token_ids, skip_special_tokens=True) == choice.text
        assert (choice.token_ids[-1] == tokenizer.eos_token_id) == (choice.finish_reason == "stop")
    assert sum(len(c.token_ids) for c in told.choices) == told.completion_tokens


def test_what_does_not_fit_into_the_context_is_rejected(model: TransformersModel) -> None:
    with pytest.raises(CallRejected, match="exceed the model's context of 8192"):
        ask(model, request_of("x" * 9000))


def test_a_directory_that_is_no_model_is_refused(tmp_path: object) -> None:
    with pytest.raises(SetupError, match="is no model directory"):
        TransformersModel(str(tmp_path), "none")
