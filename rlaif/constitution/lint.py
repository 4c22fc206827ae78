"""What is wrong with a constitution, as far as can be told without a model."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.constitution.conditions import Condition
from rlaif.constitution.file import ConstitutionFile, Place, mistakes_of, read_constitution
from rlaif.constitution.likeness import Level, frame_of, likeness
from rlaif.constitution.model import BARE, EVERY, WORDINGS, Case, Example, Principle
from rlaif.constitution.wording import WordingError
from rlaif.errors import SetupError
from rlaif.types import Prompt

FEWEST_LETTERS = 6
BYTES_A_TOKEN = 4
"""Of English text; other scripts take more bytes a letter and more tokens a letter."""
FRAME_TOKENS = 100
"""What a judge's prompt says around a rule and its question."""
LISTED = 8


class Finding(NamedTuple):
    """One thing that is wrong (error) or doubtful (warning), and how to mend it."""

    level: Level
    file: Path
    line: int | None
    principle: str
    """Id of the principle concerned; empty: the file as a whole."""
    problem: str
    fix: str

    def __str__(self) -> str:
        """`FILE:LINE: warning: kindness: … (fix)`."""
        field = ": ".join(part for part in (self.level, self.principle) if part)
        return str(
            SetupError(self.problem, file=self.file, line=self.line, field=field, fix=self.fix)
        )

    def as_error(self) -> SetupError:
        """The finding as what stops a command."""
        return SetupError(
            self.problem,
            file=self.file,
            line=self.line,
            field=f"principles[{self.principle}]" if self.principle else "",
            fix=self.fix,
        )


def lint_path(
    name: str, *, context_tokens: int | None = 4096, prompts: Sequence[Prompt] = ()
) -> list[Finding]:
    """`lint` of a file by path or name, or all that keeps it from being loaded.

    Raises SetupError where there is no such file.
    """
    if wrong := mistakes_of(name):
        return [_of_mistake(error) for error in wrong]
    file = read_constitution(name)
    return lint(file, context_tokens=context_tokens, prompts=prompts)


def _of_mistake(error: SetupError) -> Finding:
    named = re.match(r"principles\[([a-z0-9_-]*[a-z_-][a-z0-9_-]*)\]\.?", error.field)
    field = error.field[named.end() :] if named else error.field
    problem = f"{field}: {error.problem}" if field else error.problem
    file = Path(error.file or "")
    return Finding("error", file, error.line, named[1] if named else "", problem, error.fix)


def lint(
    file: ConstitutionFile,
    *,
    context_tokens: int | None = 4096,
    prompts: Sequence[Prompt] = (),
) -> list[Finding]:
    """Everything that looks wrong, by file and line.

    `context_tokens` is how much the judge can read and answer (None: enough for anything),
    `prompts` those of a run that the constitution is meant for.
    """
    found = [
        *_alike(file),
        *_weightless_tiers(file),
        *_conditions(file, prompts),
        *_wordings(file, prompts, context_tokens),
        *_examples(file),
        *_tests(file),
        *_same_tests(file),
        *_untested(file),
    ]
    return sorted(found, key=lambda f: (str(f.file), f.line or 0, f.level, f.problem))


def _error(place: Place, principle: str, problem: str, fix: str) -> Finding:
    return Finding("error", *place, principle, problem, fix)


def _warning(place: Place, principle: str, problem: str, fix: str) -> Finding:
    return Finding("warning", *place, principle, problem, fix)


def _shown(place: Place) -> str:
    return f"{place.file}:{place.line}"


# Rules that say the same


def _alike(file: ConstitutionFile) -> Iterator[Finding]:
    principles = file.constitution.principles
    frame = frame_of(principles)
    for at, later in enumerate(principles):
        for earlier in principles[:at]:
            how = likeness(earlier, later, frame)
            if how is None:
                continue
            level, said = how
            other = f"{earlier.id!r} ({_shown(file.place(earlier.id))})"
            fix = "keep one; what is said twice counts twice"
            yield Finding(level, *file.place(later.id), later.id, f"{said} {other}", fix)
            break


# Weights and conditions


def _weightless_tiers(file: ConstitutionFile) -> Iterator[Finding]:
    tiers: dict[int, list[Principle]] = defaultdict(list)
    for principle in file.constitution.principles:
        tiers[principle.tier].append(principle)
    for tier, members in tiers.items():
        if not any(p.weight for p in members):
            first = members[0].id
            yield _warning(
                file.place(first, "weight"),
                first,
                f"the weights of tier {tier} sum to nothing: with `judge.principles: tiers` it "
                "is never asked",
                "give one of its principles a weight above 0",
            )


def _conditions(file: ConstitutionFile, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    principles = file.constitution.principles
    for principle in principles:
        condition = Condition.of(principle.applies_when)
        place = file.place(principle.id, "applies_when")
        if not condition.text:
            continue
        if not condition.reachable:
            yield _error(
                place,
                principle.id,
                f"no prompt can meet `applies_when`: {condition.text}",
                "mend the condition, or the principle is never asked",
            )
        elif condition.always:
            yield _warning(
                place,
                principle.id,
                f"every prompt meets `applies_when`: {condition.text}",
                "leave it out, or mend it",
            )
        elif prompts and not any(principle.applies(prompt) for prompt in prompts):
            yield _warning(
                place,
                principle.id,
                f"none of the {len(prompts)} prompts meets `applies_when`: {condition.text}",
                "see their tags and metadata for a misspelling",
            )
    alone = [p.id for p in prompts if not any(r.weight and r.applies(p) for r in principles)]
    if alone:
        yield _warning(
            Place(file.path, 1),
            "",
            f"no principle applies to {len(alone)} of the {len(prompts)} prompts, such as "
            f"{alone[0]!r}: their answers get no label",
            "add a principle without `applies_when`, or leave these prompts out",
        )


# Wordings


def _wordings(
    file: ConstitutionFile, prompts: Sequence[Prompt], context_tokens: int | None
) -> Iterator[Finding]:
    for principle in file.constitution.principles:
        if not _letters(principle.text):
            yield _error(
                file.place(principle.id, "text"), principle.id, "its text says nothing", ""
            )
        tests = [c for c in file.constitution.tests if c.principle in (principle.id, EVERY)]
        meant = [*(case.as_prompt() for case in tests), *prompts]
        rendered = []
        for prompt in filter(principle.applies, (*meant, BARE)):
            try:
                rendered.append((prompt, principle.worded(prompt)))
            except SetupError as e:
                field = e.field.rpartition(".")[2]
                cause = e.__cause__
                lacking = isinstance(cause, WordingError) and cause.lacking
                said = e.problem.removesuffix(f" for the prompt {prompt.id!r}")
                said = said.removeprefix(f"cannot be rendered for the prompt {prompt.id!r}: ")
                yield Finding(
                    "warning" if prompt is BARE and lacking else "error",
                    *file.place(principle.id, field),
                    principle.id,
                    f"{field} cannot be rendered for {_described(prompt)}: {said}",
                    "give such prompts what it needs, or let `applies_when` ask for it"
                    if lacking
                    else "mend its Jinja",
                )
                break
        for field in WORDINGS:
            yield from _empty(file, principle, field, rendered)
        if context_tokens is not None:
            yield from _long(file, principle, [p for _, p in rendered], context_tokens)


def _empty(
    file: ConstitutionFile,
    principle: Principle,
    field: str,
    rendered: Sequence[tuple[Prompt, Principle]],
) -> Iterator[Finding]:
    """Of all prompts the one with the shortest wording is told of."""
    said = [(_letters(dict(worded)[field]), prompt) for prompt, worded in rendered]
    letters, prompt = min(said, key=lambda one: one[0], default=(FEWEST_LETTERS, BARE))
    if letters < FEWEST_LETTERS:
        yield Finding(
            "warning" if letters else "error",
            *file.place(principle.id, field),
            principle.id,
            f"{field} is {'nearly ' if letters else ''}empty for {_described(prompt)}",
            "give the Jinja an `else`" if "{%" in dict(principle)[field] else "say more",
        )


def _letters(text: str) -> int:
    return len(re.findall(r"\w", text))


def _described(prompt: Prompt) -> str:
    tags = f"the tags {', '.join(prompt.tags)}" if prompt.tags else ""
    known = ", ".join(f"{key}: {value}" for key, value in prompt.metadata.items())
    parts = [part for part in (tags, f"the metadata {known}" if known else "") if part]
    return f"a prompt with {' and '.join(parts)}" if parts else "a prompt without tags and metadata"


def _long(
    file: ConstitutionFile, principle: Principle, rendered: Sequence[Principle], context_tokens: int
) -> Iterator[Finding]:
    """Half of the context is left to the conversation and two responses."""
    tokens, field = max(
        (_tokens(worded, field), field) for worded in rendered or [principle] for field in WORDINGS
    )
    if tokens > context_tokens // 2:
        yield Finding(
            "error" if tokens > context_tokens else "warning",
            *file.place(principle.id, field),
            principle.id,
            f"text, {field} and examples come to about {tokens:,} tokens of a context of "
            f"{context_tokens:,}, which must also hold the conversation and two responses",
            "shorten them, or show fewer examples",
        )


def _tokens(principle: Principle, field: str) -> int:
    """About how many tokens a question takes up before a response is shown. Each example repeats
    the rule and its question."""
    question = _size(principle.text, dict(principle)[field])
    examples = [
        _size(e.prompt, e.chosen, e.rejected, e.critique, e.rationale) for e in principle.examples
    ]
    return sum(FRAME_TOKENS + question + size for size in (0, *examples))


def _size(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts) // BYTES_A_TOKEN


# Examples and tests


def _examples(file: ConstitutionFile) -> Iterator[Finding]:
    for principle in file.constitution.principles:
        place = file.place(principle.id, "examples")
        shown_to = {"critique": "who writes critiques", "rationale": "a judge that reasons"}
        for field, whom in shown_to.items():
            silent = sum(not dict(e)[field] for e in principle.examples)
            if 0 < silent < len(principle.examples):
                yield _warning(
                    place,
                    principle.id,
                    f"{silent} of {len(principle.examples)} examples have no {field} and are not "
                    f"shown to {whom}",
                    "give all of them one, or none",
                )
        for number, example in enumerate(principle.examples, 1):
            if _plain(example.chosen) == _plain(example.rejected):
                yield _error(
                    place,
                    principle.id,
                    f"chosen and rejected of example {number} are the same text",
                    "an example shows a difference",
                )


def _tests(file: ConstitutionFile) -> Iterator[Finding]:
    constitution = file.constitution
    principles = {p.id: p for p in constitution.principles}
    for case, place in zip(constitution.tests, file.test_places, strict=True):
        named = principles.get(case.principle)
        test = f"the test {case.title!r}"
        if not case.principle:
            fix = f"add `principle:` with an id, or {EVERY!r} for the whole constitution"
            yield _error(place, "", f"{test} names no principle", fix)
        elif case.principle == EVERY:
            yield from _test_of_all(case, place, constitution.principles)
        elif named is None:
            near = difflib.get_close_matches(case.principle, principles, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(principles)}"
            yield _error(place, "", f"{test} names {case.principle!r}, which is no principle", fix)
        elif not named.applies(case.as_prompt()):
            yield _error(
                place,
                named.id,
                f"{test} cannot be asked: its prompt does not meet `applies_when`: "
                f"{named.applies_when}",
                "give the test the tags and metadata that the principle asks for",
            )
        elif any(_is_shown(case, example) for example in named.examples):
            yield _warning(
                place,
                named.id,
                f"{test} is one of the principle's examples: the judge is shown the answer",
                "test with responses that are in no example",
            )


def _test_of_all(case: Case, place: Place, principles: Sequence[Principle]) -> Iterator[Finding]:
    test = f"the test {case.title!r}"
    if case.complies is not None:
        yield _error(
            place,
            "",
            f"{test} asks whether a response complies with {EVERY!r}, which is no single principle",
            "name one principle, or give two responses as chosen and rejected",
        )
    elif not any(p.weight and p.applies(case.as_prompt()) for p in principles):
        yield _error(
            place,
            "",
            f"{test} cannot be asked: no principle applies to its prompt",
            "give the test tags and metadata that one of them asks for",
        )


def _is_shown(case: Case, example: Example) -> bool:
    shown = {_plain(example.chosen), _plain(example.rejected)}
    return _plain(case.prompt[-1].content) == _plain(example.prompt) and shown >= {
        _plain(text) for text in (case.chosen, case.rejected, case.response) if text is not None
    }


def _same_tests(file: ConstitutionFile) -> Iterator[Finding]:
    """Tests that stand twice, or that ask for two answers to one question."""
    first: dict[Hashable, tuple[Hashable, Place]] = {}
    for case, place in zip(file.constitution.tests, file.test_places, strict=True):
        question, answer = _asked(case)
        wanted, earlier = first.setdefault(question, (answer, place))
        if earlier is place:
            continue
        named = case.principle if case.principle != EVERY else ""
        test = f"the test {case.title!r}"
        there = _shown(earlier)
        if wanted == answer:
            yield _warning(place, named, f"{test} already stands at {there}", "keep one")
        else:
            problem = f"{test} contradicts the one at {there}: same question, another answer"
            yield _error(place, named, problem, "keep the one that is right")


def _asked(case: Case) -> tuple[Hashable, Hashable]:
    """A test's question, and the answer that it wants."""
    texts = [_plain(t) for t in (case.chosen, case.rejected, case.response) if t is not None]
    question = (case.principle, case.as_prompt().id, frozenset(texts))
    return question, texts[0] if case.complies is None else case.complies


def _plain(text: str) -> str:
    return " ".join(text.split())


def _untested(file: ConstitutionFile) -> Iterator[Finding]:
    """One finding a file, however many principles of it there are."""
    tested = {case.principle for case in file.constitution.tests}
    missing = [(file.place(p.id), p.id) for p in file.constitution.principles]
    missing = [(place, name) for place, name in missing if name not in tested]
    for _, group in itertools.groupby(
        sorted(missing, key=lambda one: (str(one[0].file), one[0].line or 0)),
        key=lambda one: one[0].file,
    ):
        of_file = list(group)
        names = [name for _, name in of_file]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        yield _warning(
            of_file[0][0],
            "",
            f"no test shows what these principles mean: {', '.join(names[:LISTED])}{more}",
            "add `tests` with two responses, chosen and rejected, or one and whether it complies",
        )
