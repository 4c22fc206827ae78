"""The tests of a constitution file, put to a judge in the way that a run asks it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif import interrupts
from rlaif.constitution import EVERY, Case, Constitution, ConstitutionFile, Place, read_constitution
from rlaif.constitution.lint import lint
from rlaif.errors import SetupError
from rlaif.evaluate.test_table import (
    CaseResult,
    CaseRun,
    Contradiction,
    contradictions,
    decided_by,
)
from rlaif.files import digest, full_disk, need_space
from rlaif.judge.aggregate import Pair, is_level
from rlaif.judge.comply import Compliance, Question, asked_alone, judge_compliance
from rlaif.judge.config import AskConfig, JudgeConfig
from rlaif.judge.forms import Asked, Form
from rlaif.judge.panel import Panel
from rlaif.models.client import Bill
from rlaif.models.gate import Gate
from rlaif.models.names import parse_model
from rlaif.models.pool import check_model, gives_logprobs
from rlaif.progress import progress
from rlaif.types import Comparison, Judgment, Response
from rlaif.workspace import Workspace

NEEDED_MB = 50


class _Chosen(NamedTuple):
    case: Case
    place: Place


class _Contradictions(NamedTuple):
    found: Sequence[Contradiction]
    decided: int
    votes: int


class _Told(NamedTuple):
    """What a judge made of a test."""

    p: float | None
    """Probability of what the test expects."""
    reason: str


def run_constitution_test(
    name: str,
    config: JudgeConfig,
    out: Path,
    seed: int = 0,
    *,
    only: Sequence[str] = (),
    find_contradictions: bool = False,
    gate: Gate | None = None,
) -> CaseRun:
    """`run_tests` of a constitution by path or name, with its calls kept in the folder `out`.
    `gate`: what may be spent.

    Raises RlaifError; answered calls are kept.
    """
    file = read_constitution(name)
    chosen = _chosen(file, config, only, find_contradictions)
    need_space(out, NEEDED_MB)

    async def run() -> CaseRun:
        work = Workspace(out, seed, {}, gate)
        try:
            return await _run(file, chosen, config, work, find_contradictions)
        finally:
            await work.close()

    with full_disk(out):
        return interrupts.run(run())


async def run_tests(
    file: ConstitutionFile,
    config: JudgeConfig,
    work: Workspace,
    *,
    only: Sequence[str] = (),
    find_contradictions: bool = False,
) -> CaseRun:
    """Asks the judge about the tests of the file, or those of the principles `only`.

    Pairs are asked in both orders whatever the config says, under their own principle or, for `*`,
    as a run asks the whole constitution; single responses as mode pointwise asks. With
    `find_contradictions` every principle is asked about every pair of these tests.

    Raises SetupError, before anything is asked, where the file does not lint, a name in `only` is
    unknown, nothing is there to ask, or the judge cannot be asked so.
    """
    chosen = _chosen(file, config, only, find_contradictions)
    return await _run(file, chosen, config, work, find_contradictions)


async def _run(
    file: ConstitutionFile,
    chosen: Sequence[_Chosen],
    config: JudgeConfig,
    work: Workspace,
    find_contradictions: bool,
) -> CaseRun:
    async with work.stage("test") as bill:
        asking = _Asking(file.constitution, config.in_both_orders(), work, bill)
        results = await asking.all(chosen)
        found = _Contradictions([], 0, 0)
        if find_contradictions:
            found = await asking.contradictions(chosen)
    return CaseRun(
        constitution=file.constitution.id,
        judge=" + ".join(asked.model for _, asked in config.judges()),
        results=tuple(results),
        contradictions=tuple(found.found),
        decided=found.decided,
        votes=found.votes,
        calls_made=bill.calls_made,
        calls_from_store=bill.calls_from_store,
        seconds=asking.seconds,
    )


def _chosen(
    file: ConstitutionFile, config: JudgeConfig, only: Sequence[str], contradictions: bool
) -> list[_Chosen]:
    """The tests to ask, after all that can be checked before."""
    for finding in lint(file, context_tokens=_context(config)):
        if finding.level == "error":
            raise finding.as_error()
    _check_judges(config)
    constitution = file.constitution
    known = [p.id for p in constitution.principles] + [EVERY]
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise SetupError(
                f"there is no principle {name!r}",
                file=file.path,
                fix=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}",
            )
    tests = zip(constitution.tests, file.test_places, strict=True)
    chosen = [_Chosen(case, at) for case, at in tests if not only or case.principle in only]
    pairs = [case.as_prompt() for case, _ in chosen if case.complies is None]
    if not chosen or (contradictions and not pairs):
        kind = "test with two responses" if contradictions else "test"
        raise SetupError(
            f"has no {kind}" + (f" of {', '.join(only)}" if only else ""),
            file=file.path,
            fix="add `tests` to its principles: a prompt, chosen and rejected",
        )
    if contradictions:
        file.check_wordings(pairs)
    return chosen


def _context(config: JudgeConfig) -> int | None:
    """Tokens that the judges can read, where we start their server; None: unknown."""
    served = [
        asked.server.max_model_len
        for field, asked in config.judges()
        if parse_model(asked.model, field).has_weights
    ]
    return min(served, default=None)


def _check_judges(config: JudgeConfig) -> None:
    for field, asked in config.judges():
        check_model(asked.model, field)
        model = Asked(asked.model, gives_logprobs(asked.model, field), 1)
        Form(asked, model).check(field)
        Form(asked_alone(asked), model)


class _Asking:
    """One judge config at work on tests, and the time that it takes."""

    def __init__(
        self, constitution: Constitution, config: JudgeConfig, work: Workspace, bill: Bill
    ) -> None:
        self._constitution = constitution
        self._config = config
        self._work = work
        self._bill = bill

    async def all(self, chosen: Sequence[_Chosen]) -> list[CaseResult]:
        """One result a test, in their order."""
        pairs = [i for i, (case, _) in enumerate(chosen) if case.complies is None]
        singles = [i for i, (case, _) in enumerate(chosen) if case.complies is not None]
        results: dict[int, CaseResult] = {}
        for ask, members in ((self._pairs, pairs), (self._singles, singles)):
            before = self.seconds
            told = await ask([chosen[i].case for i in members]) if members else []
            for i, said in zip(members, told, strict=True):
                results[i] = _result(chosen[i], said, (self.seconds - before) / len(members))
        return [results[i] for i in range(len(chosen))]

    async def contradictions(self, chosen: Sequence[_Chosen]) -> _Contradictions:
        """Asks every principle about every pair, each pair once."""
        cases = {_texts(case): case for case, _ in chosen if case.complies is None}.values()
        pairs = [_pair(case) for case in cases]
        config = self._config.model_copy(update={"principles": "all"})

        panel = Panel(config, self._constitution, self._work.seed, self._open)
        verdicts = await panel.judge_pairs(pairs, progress)
        votes = [
            {i: _right(pair, case, vote) for i, vote in comparison.votes.items()}
            for pair, case, comparison in zip(pairs, cases, verdicts.comparisons, strict=True)
        ]
        return _Contradictions(
            contradictions(list(cases), votes),
            sum(len(of) for of in decided_by(votes)),
            len(cases) * len(self._constitution.principles),
        )

    @property
    def seconds(self) -> float:
        """Spent asking so far; the start of a server is not in it."""
        return self._bill.asking_s

    async def _pairs(self, cases: Sequence[Case]) -> list[_Told]:
        pairs = [_pair(case) for case in cases]
        under = {
            pair.id: case.principle
            for pair, case in zip(pairs, cases, strict=True)
            if case.principle != EVERY
        }
        panel = Panel(self._config, self._constitution, self._work.seed, self._open, under)
        verdicts = await panel.judge_pairs(pairs, progress)
        return [
            _told_of_pair(case, pair, comparison, verdicts.judgments)
            for case, pair, comparison in zip(
                cases, verdicts.pairs, verdicts.comparisons, strict=True
            )
        ]

    async def _singles(self, cases: Sequence[Case]) -> list[_Told]:
        principles = {p.id: p for p in self._constitution.principles}
        questions = [
            Question(
                case.as_prompt(), _response(case, str(case.response)), principles[case.principle]
            )
            for case in cases
        ]
        found = await judge_compliance(self._config, questions, self._open, progress)
        margin = self._config.tie_margin
        return [_told_of_one(case, one, margin) for case, one in zip(cases, found, strict=True)]

    def _open(self, asked: AskConfig, field: str) -> Any:
        return self._work.pool.open(asked, field, self._bill)


def _told_of_pair(
    case: Case, pair: Pair, comparison: Comparison, judgments: Sequence[Judgment]
) -> _Told:
    if comparison.p_first is None:
        return _Told(None, comparison.reason)
    p = _right(pair, case, comparison.p_first)
    if comparison.outcome == "tie":
        of_pair = [j for j in judgments if j.comparison_id == comparison.id]
        return _Told(p, f"a tie: {_why_tied(of_pair)}")
    return _Told(p, "" if p > 0.5 else "the rejected response wins")


def _told_of_one(case: Case, found: Compliance, tie_margin: float) -> _Told:
    if found.p_complies is None:
        return _Told(None, found.reason)
    p = found.p_complies if case.complies else 1.0 - found.p_complies
    if is_level(p, tie_margin):
        return _Told(p, "a tie: the judge leans neither way")
    verdict = "breaks" if case.complies else "follows"
    return _Told(p, "" if p > 0.5 else f"the judge finds that it {verdict} the principle")


def _result(chosen: _Chosen, told: _Told, seconds: float) -> CaseResult:
    case, place = chosen
    missed: Literal["fail", "unscored"] = "unscored" if told.p is None else "fail"
    return CaseResult(
        title=case.title,
        principle=case.principle,
        kind="pair" if case.complies is None else "compliance",
        outcome=missed if told.reason else "pass",
        p=told.p,
        reason=told.reason,
        seconds=seconds,
        place=place,
    )


def _texts(case: Case) -> frozenset[str]:
    """What a pair shows, whichever response should win."""
    return frozenset((case.as_prompt().id, str(case.chosen), str(case.rejected)))


def _pair(case: Case) -> Pair:
    """The test's responses in an order that depends on their texts alone: a judge that names what
    is shown first must not pass."""
    assert case.chosen is not None
    assert case.rejected is not None
    chosen, rejected = _response(case, case.chosen), _response(case, case.rejected)
    ahead = int(digest([chosen.prompt_id, chosen.text, rejected.text])[0], 16) % 2 == 0
    return Pair(case.as_prompt(), *((chosen, rejected) if ahead else (rejected, chosen)))


def _right(pair: Pair, case: Case, p_first: float) -> float:
    """P(chosen preferred)."""
    return p_first if pair.first.text == case.chosen else 1.0 - p_first


def _response(case: Case, text: str) -> Response:
    prompt = case.as_prompt().id
    return Response(
        # The same two texts may stand in tests of several principles.
        id=f"{prompt}/{digest(text)[:12]}@{case.principle}",
        prompt_id=prompt,
        text=text,
        finish_reason="stop",
        model="test",
        call="",
    )


def _why_tied(judgments: Sequence[Judgment]) -> str:
    """Whether it is the place that wins: a response in one order, the other in the other."""
    shown_first = [
        j.p_first if j.order == "forward" else 1.0 - j.p_first
        for j in judgments
        if j.order != "none" and j.p_first is not None and not is_level(j.p_first, 0.0)
    ]
    if shown_first and all(p > 0.5 for p in shown_first):
        return "what is shown first wins in both orders"
    if shown_first and all(p < 0.5 for p in shown_first):
        return "what is shown second wins in both orders"
    return "neither response is preferred"
