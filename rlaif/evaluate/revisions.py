"""What critique and revision did to the policy's answers, in figures and in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from rlaif.evaluate.intervals import Interval, clustered_share
from rlaif.evaluate.wording import counted, number, percent, reasons, share
from rlaif.revise import LABELER
from rlaif.types import Comparison, Outcome, Probability, Record, RevisionChain

PREAMBLE = re.compile(
    r"[^\n:]{0,100}\b(?:revis|rewrit|rewrote|reword)[^\n:]{0,80}:"
    r"|(?:[^\n:]{0,60}\b(?:here|below)|\W*(?:the |my )?(?:new|improved|updated|corrected))\b"
    r"[^\n:]{0,60}\b(?:response|reply|answer|version)\b[^\n:]{0,60}:",
    re.IGNORECASE,
)
"""A first line that speaks of a revision and has a colon: `Here is the revised response:`."""
MANY = 0.1
"""Share of revisions with a preamble, of cut ones and of chains that ended early, from which on a
reader must be warned."""
MOSTLY = 0.5
"""The same for revisions that changed nothing."""
CREDIT: Mapping[Outcome, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}


class JudgedRound(Record):
    """How the judge finds the revisions of one round."""

    over_original: Interval | None
    """Share preferred over the original, a tie counts half; None without a verdict."""
    over_previous: Interval | None
    """The same over what the revision was made from."""
    unscored: NonNegativeInt
    """Revisions without a verdict against the original."""


class RevisionsSection(Record):
    """Chains of response, critique and revision, and the data made of them."""

    policy: str
    """Identity of the model that gave the originals."""
    reviser: str
    """Identity of the model that criticised and revised."""
    constitution: str
    constitution_hash: str
    rounds: PositiveInt
    """Rounds asked for."""
    prompts: NonNegativeInt
    unanswered: Mapping[str, NonNegativeInt]
    """Reason -> prompts without an original, which have no chain."""
    chains: NonNegativeInt
    revised: NonNegativeInt
    """Chains with at least one revision: these are trained on."""
    revisions: tuple[NonNegativeInt, ...]
    """Revisions made in each round."""
    ended: Mapping[str, NonNegativeInt]
    """Reason -> chains that ended before their last round."""
    unchanged: Probability | None
    """Share of revisions that say just what they were made from; None without a revision, as in
    all that follow."""
    cut: Probability | None
    """Share of revisions that the token limit cut."""
    preamble: Probability | None
    """Share of revisions that begin by announcing themselves (see `PREAMBLE`)."""
    words_original: NonNegativeFloat | None
    """Mean words of the originals that have a revision."""
    words_final: NonNegativeFloat | None
    """Mean words of their last revisions."""
    by_principle: Mapping[str, NonNegativeInt]
    """Principle id -> revisions made under it."""
    train: NonNegativeInt
    """Rows of the SFT dataset to train on."""
    test: NonNegativeInt
    """Its held-out rows."""
    pairs: NonNegativeInt
    """Pairs of a revision and its original, the revision preferred by construction."""
    judges: tuple[str, ...] = ()
    """Who judged the chains; empty where nobody did."""
    judged: tuple[JudgedRound, ...] = ()
    """Round by round."""


def figures(chains: Sequence[RevisionChain], rounds: int) -> dict[str, object]:
    """The fields of `RevisionsSection` that the chains alone tell."""
    steps = [step for chain in chains for step in _steps(chain)]
    made = [revision for chain in chains for revision in chain.revisions]
    final = [(c.original.text, c.revisions[-1].text) for c in chains if c.revisions]
    return {
        "rounds": rounds,
        "chains": len(chains),
        "revised": len(final),
        "revisions": tuple(sum(len(c.revisions) > r for c in chains) for r in range(rounds)),
        "ended": dict(sorted(Counter(c.reason for c in chains if c.reason).items())),
        "unchanged": _share([before == after for before, after in steps]),
        "cut": _share([r.finish_reason == "length" for r in made]),
        "preamble": _share([has_preamble(r.text) for r in made]),
        "words_original": _mean_words([before for before, _ in final]),
        "words_final": _mean_words([after for _, after in final]),
        "by_principle": dict(sorted(Counter(r.principle_id for r in made).items())),
    }


def _steps(chain: RevisionChain) -> Iterator[tuple[str, str]]:
    """What each revision was made from, and what it says."""
    before = chain.original.text
    for revision in chain.revisions:
        yield before, revision.text
        before = revision.text


def has_preamble(text: str) -> bool:
    """Whether a revision begins by announcing itself, by a simple check."""
    return PREAMBLE.match(text) is not None


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _mean_words(texts: Sequence[str]) -> float | None:
    return sum(len(text.split()) for text in texts) / len(texts) if texts else None


def judged_rounds(
    comparisons: Sequence[Comparison], number_of: Mapping[str, int], rounds: int, seed: int
) -> tuple[JudgedRound, ...]:
    """Round by round, how often the judge prefers the later of two responses of a chain.

    `number_of` gives each response's place in its chain, the original's 0. Intervals are over
    prompts.
    """
    found = []
    for later in range(1, rounds + 1):
        over = {
            earlier: [
                (c, number_of[c.first] == later)
                for c in comparisons
                if {number_of[c.first], number_of[c.second]} == {earlier, later}
            ]
            for earlier in (0, later - 1)
        }
        found.append(
            JudgedRound(
                over_original=_preferred(over[0], seed),
                over_previous=_preferred(over[later - 1], seed),
                unscored=sum(c.outcome == "unscored" for c, _ in over[0]),
            )
        )
    return tuple(found)


def _preferred(compared: Sequence[tuple[Comparison, bool]], seed: int) -> Interval | None:
    """Share of wins, where the flag says that the one to win is shown as the first."""
    scored = [(c, first) for c, first in compared if c.outcome != "unscored"]
    if not scored:
        return None
    won = [CREDIT[c.outcome] if first else 1.0 - CREDIT[c.outcome] for c, first in scored]
    return clustered_share(won, [c.prompt_id for c, _ in scored], seed)


def sentences(section: RevisionsSection) -> list[str]:
    """The section in plain sentences."""
    found = [
        f"{counted(section.chains, 'answer')} of {section.policy}, "
        f"{section.revised:,} of them revised by {section.reviser}: "
        f"{counted(sum(section.revisions), 'revision')} in "
        f"{counted(section.rounds, 'round')}."
    ]
    if section.words_original is not None and section.words_final is not None:
        found.append(
            f"A revised answer has {number(section.words_original)} words at first and "
            f"{number(section.words_final)} in the end."
        )
    for at, judged in enumerate(section.judged, 1):
        if judged.over_original is not None:
            found.append(
                f"After round {at} the judge prefers the revision to the original in "
                f"{share(judged.over_original, 0.5)} of the cases (a tie counts half)."
            )
    if section.pairs and not section.judges:
        found.append("Nobody has judged whether the revisions are better.")
    return found


def warnings(section: RevisionsSection) -> list[str]:
    """What a reader must know before training on the revisions."""
    found = []
    if section.unanswered:
        found.append(
            f"{counted(sum(section.unanswered.values()), 'prompt')} got no answer to revise "
            f"({reasons(section.unanswered)})."
        )
    early = sum(section.ended.values())
    if section.chains and early / section.chains > MANY:
        found.append(
            f"{percent(early / section.chains)} of the chains ended early "
            f"({reasons(section.ended)})."
        )
    if section.preamble is not None and section.preamble > 0:
        found.append(
            f"{percent(section.preamble)} of the revisions begin by announcing themselves "
            "(“Here is the revised response: …”): a policy trained on them learns to."
        )
    if section.cut is not None and section.cut > MANY:
        found.append(
            f"The token limit cut {percent(section.cut)} of the revisions: raise revise.max_tokens."
        )
    if section.unchanged is not None and section.unchanged > MOSTLY:
        found.append(
            f"{percent(section.unchanged)} of the revisions changed nothing: the model may not be "
            "able to revise."
        )
    found += [
        f"The judge does not prefer the revisions of round {at}: {share(over, 0.5)} over the "
        "original."
        for at, judged in enumerate(section.judged, 1)
        if (over := judged.over_original) is not None and over.high is not None and over.high < 0.5
    ]
    return found


def sft_card(section: RevisionsSection) -> str:
    """What the SFT dataset says of itself."""
    return f"""# Revised answers under the constitution `{section.constitution}`

{section.train + section.test} answers ({section.train} train, {section.test} test; split by
prompt), each the last revision of its chain of critique and revision (Bai et al. 2022,
section 3.1). Chains without a revision are not in here.

{_origin(section)}
Columns: `prompt` and `completion` (chat messages, as TRL's SFTTrainer reads them), `prompt_id`,
`rounds` (revisions made), `principles` (which one each round held the answer against),
`constitution`, `constitution_hash`, and `ended`: false where the token limit cut the answer.
"""


def pairs_card(section: RevisionsSection) -> str:
    """What the pairs of revision and original say of themselves."""
    return f"""# Revisions preferred to their originals, by construction

{section.pairs} pairs. In each of them a revision is `chosen` and the answer that it was made from
at first is `rejected`. **No judge gave these labels**: a revision wins because it is one, and
`judge` and `mode` say `{LABELER}`. A revision that says just what the original says is in no pair.

{_origin(section)}
Columns: `prompt`, `chosen`, `rejected` (chat messages), `probability` (1) and `probability_margin`
(1), the ids of prompt and responses (`<prompt id>/rev0` is the original, `rev1` the first
revision), and `chosen_ended` / `rejected_ended`: false where the token limit cut the answer. The
other columns are those of judged preferences, and empty.
"""


def _origin(section: RevisionsSection) -> str:
    ended = ", ".join(f"{reason} {n}" for reason, n in section.ended.items()) or "none"
    return f"""| | |
|---|---|
| policy | `{section.policy}` |
| critic and reviser | `{section.reviser}` |
| constitution | `{section.constitution}`, sha256 `{section.constitution_hash}` |
| rounds | {section.rounds}; revisions made: {", ".join(map(str, section.revisions))} |
| prompts, chains, revised | {section.prompts}, {section.chains}, {section.revised} |
| chains that ended early | {sum(section.ended.values())} ({ended}) |
"""
