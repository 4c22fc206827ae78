"""A response, its critique, its revision, and again (Bai et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from rlaif.callstore import call_key
from rlaif.constitution import Principle
from rlaif.errors import CallError
from rlaif.models.client import Answer, Client
from rlaif.progress import Advance
from rlaif.templates import Template
from rlaif.types import (
    ChatRequest,
    Choice,
    Comparison,
    Prompt,
    Response,
    Revision,
    RevisionChain,
    Sampling,
)

LABELER = "revision"
"""Who prefers a revision to its original: nobody has looked, so it is never a judge's name."""
NONE_APPLIES = "no_principle_applies"
SHOWN = frozenset({"conversation", "response", "principle"})

Choose = Callable[[Prompt, int], Principle | None]
"""The principle that a prompt's response is revised by in a round (from 1); None: there is none."""
Show = Callable[[str, int], AbstractContextManager[Advance]]
"""Opens a progress display: label, total."""


@dataclass
class _Chain:
    """A chain as it grows."""

    prompt: Prompt
    original: Response
    revisions: list[Revision] = field(default_factory=list)
    reason: str = ""

    @property
    def text(self) -> str:
        """What the next round starts from."""
        return self.revisions[-1].text if self.revisions else self.original.text


@dataclass
class _Turn:
    """A chain in a round."""

    chain: _Chain
    principle: Principle
    requests: list[ChatRequest]
    """Critique, then revision."""
    critique: str = ""


class Wording:
    """How critiques and revisions are asked for."""

    def __init__(self, critique: Sampling, revision: Sampling, *, few_shot: bool) -> None:
        """Raises SetupError for a template that is not in order."""
        self._critique = Template("critique", SHOWN)
        self._revise = Template("revise", SHOWN | {"critique"})
        self._of_critique = critique
        self._of_revision = revision
        self._few_shot = few_shot

    def worded(self, principle: Principle, prompt: Prompt) -> Principle:
        """The principle as it is shown for a prompt. Raises ValueError (see `Principle.worded`)."""
        worded = principle.worded(prompt)
        return worded if self._few_shot else worded.model_copy(update={"examples": ()})

    def critique(self, model: str, prompt: Prompt, text: str, principle: Principle) -> ChatRequest:
        """The call that asks where a response falls short of a principle."""
        shown = {"conversation": prompt.messages, "response": text, "principle": principle}
        messages = self._critique.render(shown)
        return ChatRequest(model=model, messages=messages, sampling=self._of_critique)

    def revision(
        self, model: str, prompt: Prompt, text: str, principle: Principle, critique: str
    ) -> ChatRequest:
        """The call that asks for the response rewritten."""
        shown = {"conversation": prompt.messages, "response": text, "principle": principle}
        messages = self._revise.render({**shown, "critique": critique})
        return ChatRequest(model=model, messages=messages, sampling=self._of_revision)


async def revise(
    originals: Iterable[tuple[Prompt, Response]],
    rounds: int,
    choose: Choose,
    wording: Wording,
    client: Client,
    show: Show,
) -> list[RevisionChain]:
    """A chain of up to `rounds` revisions for each original, in their order.

    In each round every response that is still going is criticised under the principle that
    `choose` names, and rewritten with that critique shown. The answer, stripped and otherwise as
    it came, is what the next round starts from. A call that fails, or whose answer is filtered or
    holds no text, ends its chain with a reason, and so does a prompt that no principle applies to;
    what came before is kept.
    """
    model = client.model.identity
    chains = [_Chain(prompt, original) for prompt, original in originals]
    for number in range(1, rounds + 1):
        turns = []
        for chain in chains:
            principle = None if chain.reason else choose(chain.prompt, number)
            if principle is not None:
                principle = wording.worded(principle, chain.prompt)
                request = wording.critique(model, chain.prompt, chain.text, principle)
                turns.append(_Turn(chain, principle, [request]))
            elif not chain.reason:
                chain.reason = NONE_APPLIES
        criticised = []
        for turn, choice in await _ask(turns, "critique", number, client, show):
            turn.critique = choice.text.strip()
            chain = turn.chain
            turn.requests.append(
                wording.revision(model, chain.prompt, chain.text, turn.principle, turn.critique)
            )
            criticised.append(turn)
        for turn, choice in await _ask(criticised, "revision", number, client, show):
            turn.chain.revisions.append(
                Revision(
                    principle_id=turn.principle.id,
                    critique=turn.critique,
                    text=choice.text.strip(),
                    finish_reason=choice.finish_reason,
                    calls=tuple(call_key(r) for r in turn.requests),
                )
            )
    return [
        RevisionChain(
            prompt_id=chain.prompt.id,
            original=chain.original,
            revisions=tuple(chain.revisions),
            reason=chain.reason,
        )
        for chain in chains
    ]


async def _ask(
    turns: Sequence[_Turn], what: str, number: int, client: Client, show: Show
) -> list[tuple[_Turn, Choice]]:
    """Asks each turn's last request. The turns that were answered with text; the chains of the
    others end here."""
    requests = [turn.requests[-1] for turn in turns]
    with show(f"{what}s {number}", len({call_key(r) for r in requests})) as advance:
        answers = await client.ask_all(requests, advance)
    said = []
    for turn, answer in zip(turns, answers, strict=True):
        if why := _unusable(answer):
            turn.chain.reason = f"{what}_{why}"
        elif not isinstance(answer, CallError):
            said.append((turn, answer.choices[0]))
    return said


def _unusable(answer: Answer) -> str:
    """Why an answer cannot be gone on with; empty if it can."""
    if isinstance(answer, CallError):
        return answer.reason
    (choice,) = answer.choices
    if choice.finish_reason not in ("stop", "length"):
        return choice.finish_reason
    return "" if choice.text.strip() else "empty"


def responses_of(chain: RevisionChain, reviser: str) -> list[Response]:
    """The original and each revision as responses to one prompt: `<prompt id>/rev0`, `rev1`, …

    `reviser` is the identity of the model that wrote the revisions.
    """
    revisions = [
        Response(
            id=revision_id(chain.prompt_id, number),
            prompt_id=chain.prompt_id,
            text=revision.text,
            finish_reason=revision.finish_reason,
            model=reviser,
            call=revision.calls[-1],
        )
        for number, revision in enumerate(chain.revisions, 1)
    ]
    return [chain.original, *revisions]


def revision_id(prompt_id: str, number: int) -> str:
    """Response id of a prompt's revision; 0 is the original."""
    return f"{prompt_id}/rev{number}"


def won_by_construction(responses: Sequence[Response]) -> list[Comparison]:
    """Each revision preferred to the original, the first of `responses`, with nobody asked. One
    that says just what the original says ties."""
    original, *revisions = responses
    return [
        Comparison(
            id=f"{revision.id}|{original.id}",
            prompt_id=original.prompt_id,
            first=revision.id,
            second=original.id,
            judge=LABELER,
            outcome="tie" if revision.text == original.text else "A",
            p_first=0.5 if revision.text == original.text else 1.0,
            votes={},
            orders=1,
        )
        for revision in revisions
    ]
