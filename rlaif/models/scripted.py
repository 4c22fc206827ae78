"""What a constitution's own tests say about responses: the knowledge of `fake/knows`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.constitution import EVERY, Case, Constitution, Principle
from rlaif.files import digest
from rlaif.templates import defuse, fenced_blocks

Shown = tuple[tuple[str, ...], tuple[str, ...]]
"""The texts of a conversation, and one response or two in alphabetical order."""


class Answer(NamedTuple):
    principle: Principle
    """With the wordings that the test's prompt gets."""
    right: str | None
    """The response to speak for, empty for a single one that does not comply; None where no test
    asks about it under this principle."""


class Known:
    """The tests of a constitution, found again by what a judge's prompt shows and asks."""

    def __init__(self, constitution: Constitution) -> None:
        """Raises SetupError for a wording that cannot be rendered for a test's prompt."""
        tests = [case.model_dump(mode="json") for case in constitution.tests]
        self.fingerprint = digest([constitution.hash, tests])[:12]
        """Of all that shapes an answer."""
        self._tested: defaultdict[Shown, list[Answer]] = defaultdict(list)
        self._implied: defaultdict[Shown, list[Answer]] = defaultdict(list)
        """A single response that wins or loses a pair; only where no test is about it alone."""
        for case in constitution.tests:
            for principle in constitution.principles:
                self._learn(case, principle)

    def _learn(self, case: Case, principle: Principle) -> None:
        prompt = case.as_prompt()
        if asked := case.principle in (EVERY, principle.id) and principle.applies(prompt):
            principle = principle.worded(prompt)

        def answer(right: str) -> Answer:
            return Answer(principle, right if asked else None)

        conversation = tuple(defuse(message.content) for message in case.prompt)
        if case.response is not None:
            response = defuse(case.response)
            right = response if case.complies else ""
            self._tested[conversation, (response,)].append(answer(right))
        elif case.chosen is not None and case.rejected is not None:
            chosen, rejected = defuse(case.chosen), defuse(case.rejected)
            pair = tuple(sorted((chosen, rejected)))
            self._tested[conversation, pair].append(answer(chosen))
            self._implied[conversation, (chosen,)].append(answer(chosen))
            self._implied[conversation, (rejected,)].append(answer(""))

    def sign(self, prompt: str, shown: Sequence[str]) -> int | None:
        """1 for the first response shown, or a single one that complies; -1 for the other, or one
        that does not; None for what no test says, or what tests say in two ways.

        `prompt` is the judge's prompt, `shown` the texts of the responses in it.
        """
        blocks = fenced_blocks(prompt)
        conversation = tuple(
            block.text for block in blocks if block.title in ("System", "User", "Assistant")
        )
        asked = prompt
        for block in blocks:
            asked = asked.replace(f"\n{block.text}\n~", "\n~")
        at = (conversation, tuple(sorted(shown)))
        right = _under(self._tested.get(at, ()), asked) or _under(self._implied.get(at, ()), asked)
        signs = {1 if text == shown[0] else -1 for text in right}
        return signs.pop() if len(signs) == 1 else None


def _under(answers: Sequence[Answer], asked: str) -> list[str]:
    """What is right under the principle that is asked about: the one that most of the prompt
    quotes, for one principle's text may stand within another's."""
    quoted = [
        sum(len(said) for said in (a.principle.text, a.principle.comparison) if said in asked)
        for a in answers
    ]
    most = max(quoted, default=0)
    return [
        answer.right
        for answer, length in zip(answers, quoted, strict=True)
        if length == most > 0 and answer.right is not None
    ]
