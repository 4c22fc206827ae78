"""Whether one response, by itself, follows one principle: the question that mode pointwise asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from rlaif.callstore import call_key
from rlaif.constitution import Principle
from rlaif.errors import CallError, SetupError
from rlaif.judge.aggregate import Pair, commonest, is_level, weighted
from rlaif.judge.ask import Show
from rlaif.judge.config import AskConfig, CascadeConfig, JudgeConfig
from rlaif.judge.forms import Ask, Asked, Form
from rlaif.judge.panel import Open
from rlaif.judge.read import read_verdict
from rlaif.models.client import Answer, Client
from rlaif.types import ChatRequest, Prompt, Response

A = TypeVar("A", bound=AskConfig)


class Question(NamedTuple):
    """Does the response follow the principle?"""

    prompt: Prompt
    response: Response
    principle: Principle


class Compliance(NamedTuple):
    """P(the response follows the principle), or None with a reason."""

    p_complies: float | None
    label_mass: float | None
    """Probability that `yes` and `no` held together; None for answers read from text, and for
    several judges."""
    reason: str


def asked_alone(config: A) -> A:
    """The same judge, asked about one response. What belongs to its own way of asking about two
    (template, labels, temperature) is left behind; a mode that is read from text stays so."""
    if config.mode == "pointwise":
        return config
    return config.model_copy(
        update={
            "mode": "pointwise",
            "template": None,
            "labels": None,
            "temperature": 0.0,
            "logprobs": config.logprobs and config.mode not in ("structured", "votes"),
        }
    )


async def judge_compliance(
    config: JudgeConfig, questions: Sequence[Question], open_client: Open, show: Show
) -> list[Compliance]:
    """What all judges say, in the order of the questions: the mean of the first judge and the panel
    where at least `min_voting_weight` of them gave an answer; a cascade's strong judge has the last
    word where that is within its margin, or missing.

    Raises SetupError for a judge that cannot be asked so.
    """
    said = []
    for field, judge in config.judges():
        if not isinstance(judge, CascadeConfig):
            async with open_client(judge, field) as client:
                said.append(await _ask(judge, client, questions, show, field))
    found = [_mean(of_one, config.min_voting_weight) for of_one in zip(*said, strict=True)]
    if (cascade := config.cascade) is not None:
        doubts = [i for i, one in enumerate(found) if _in_doubt(one, cascade)]
        async with open_client(cascade, "judge.cascade.model") as client:
            asked = [questions[i] for i in doubts]
            strong = await _ask(cascade, client, asked, show, "judge.cascade.model")
        for i, one in zip(doubts, strong, strict=True):
            found[i] = one
    return found


def _mean(said: Sequence[Compliance], min_share: float) -> Compliance:
    if len(said) == 1:
        return said[0]
    given = {str(i): one.p_complies for i, one in enumerate(said) if one.p_complies is not None}
    p = weighted(given, {str(i): 1.0 for i in range(len(said))}, min_share)
    return Compliance(p, None, "" if p is not None else commonest(one.reason for one in said))


def _in_doubt(found: Compliance, cascade: CascadeConfig) -> bool:
    if found.p_complies is None:
        return "unscored" in cascade.when
    return "margin" in cascade.when and is_level(found.p_complies, cascade.margin)


async def _ask(
    config: AskConfig, client: Client, questions: Sequence[Question], show: Show, field: str
) -> list[Compliance]:
    model = client.model
    form = Form(asked_alone(config), Asked(model.identity, model.gives_logprobs, model.max_n))
    requests = [_request(form, question) for question in questions]
    distinct = {call_key(request): request for request in requests}

    async def check() -> None:
        if form.reads_logprobs and await model.probe_logprobs() is False:
            raise SetupError(
                f"{model.identity} answers without log-probabilities",
                field=f"{field.removesuffix('.model')}.logprobs",
                fix="with logprobs: false its answers are read as text",
            )

    with show("judging", len(distinct), "calls") as advance:
        answers = await client.ask_all(list(distinct.values()), advance, check)
    found = dict(zip(distinct, answers, strict=True))
    return [
        _read(form, question, found[call_key(request)])
        for question, request in zip(questions, requests, strict=True)
    ]


def _request(form: Form, question: Question) -> ChatRequest:
    """Mode pointwise asks about both responses of a pair: of one and the same it asks twice the
    same."""
    prompt, response, principle = question
    pair = Pair(prompt, response, response)
    request, _ = form.verdict(Ask(pair, principle.worded(prompt), "none"), ())
    return request


def _read(form: Form, question: Question, answer: Answer) -> Compliance:
    if isinstance(answer, CallError):
        return Compliance(None, None, answer.reason)
    config = form.config
    verdict = read_verdict(
        answer.choices[0], config.offered, config.min_label_mass, [question.response.text]
    )
    return Compliance(verdict.p_first_label, verdict.label_mass, verdict.reason)
