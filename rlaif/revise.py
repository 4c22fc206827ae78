"""A response, its critique, its revision, and again (Bai et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rlaif.callstore import call_key
from rlaif.constitution import Principle
from rlaif.errors import CallError
from rlaif.models.client import Answer, Client
from rlaif.models.flow import flow
from rlaif.progress import Spent
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
    advance: Callable[[int, Spent], None],
) -> list[RevisionChain]:
    """A chain of up to `rounds` revisions for each original, in their order; `advance` counts them.

    In each round a response is criticised under the principle that `choose` names, and rewritten
    with that critique shown. The answer, stripped and otherwise as it came, is what the next round
    starts from. A call that fails, or whose answer is filtered or holds no text, ends its chain
    with a reason, and so does a prompt that no principle applies to; what came before is kept.
    """
    chains: list[RevisionChain] = []

    def told(chain: RevisionChain) -> None:
        chains.append(chain)
        advance(len(chains), client.note)

    async def grow(original: tuple[Prompt, Response]) -> RevisionChain:
        return await _grow(*original, rounds, choose, wording, client)

    await flow(originals, grow, told, window=client.window)
    return chains


async def _grow(
    prompt: Prompt,
    original: Response,
    rounds: int,
    choose: Choose,
    wording: Wording,
    client: Client,
) -> RevisionChain:
    model = client.model.identity
    revisions: list[Revision] = []
    text, reason = original.text, ""
    for number in range(1, rounds + 1):
        principle = choose(prompt, number)
        if principle is None:
            reason = NONE_APPLIES
            break
        principle = wording.worded(principle, prompt)
        asked = wording.critique(model, prompt, text, principle)
        answer = await client.ask(asked)
        if why := _unusable(answer):
            reason = f"critique_{why}"
            break
        critique = _choice(answer).text.strip()
        rewrite = wording.revision(model, prompt, text, principle, critique)
        answer = await client.ask(rewrite)
        if why := _unusable(answer):
            reason = f"revision_{why}"
            break
        text = _choice(answer).text.strip()
        revisions.append(
            Revision(
                principle_id=principle.id,
                critique=critique,
                text=text,
                finish_reason=_choice(answer).finish_reason,
                calls=(call_key(asked), call_key(rewrite)),
            )
        )
    return RevisionChain(
        prompt_id=prompt.id, original=original, revisions=tuple(revisions), reason=reason
    )


def _choice(answer: Answer) -> Choice:
    assert not isinstance(answer, CallError)
    (choice,) = answer.choices
    return choice


def _unusable(answer: Answer) -> str:
    """Why an answer cannot be gone on with; empty if it can."""
    if isinstance(answer, CallError):
        return answer.reason
    choice = _choice(answer)
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
