"""Chains of response, critique and revision as a page to look through."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rlaif.evaluate.page import render
from rlaif.evaluate.revisions import RevisionsSection, sentences, warnings
from rlaif.files import write_text
from rlaif.types import Prompt, RevisionChain

SHOWN = 500
"""Most chains on the page; all of them are in chains.jsonl."""


class Piece(NamedTuple):
    """A stretch of words in a revision, or of words that it left out."""

    kind: Literal["same", "added", "removed"]
    text: str


class Round(NamedTuple):
    principle: str
    critique: str
    pieces: list[Piece]
    cut: bool


class Shown(NamedTuple):
    prompt: Prompt
    chain: RevisionChain
    rounds: list[Round]


def write_chains(
    chains: Sequence[RevisionChain],
    prompts: Mapping[str, Prompt],
    section: RevisionsSection,
    path: Path,
) -> None:
    """Writes the page. Raises SetupError where it cannot be written."""
    page = render(
        "chains.html.j2",
        section=section,
        sentences=sentences(section),
        warnings=warnings(section),
        shown=[Shown(prompts[chain.prompt_id], chain, _rounds(chain)) for chain in chains[:SHOWN]],
    )
    write_text(path, page)


def _rounds(chain: RevisionChain) -> list[Round]:
    before = [chain.original.text, *(revision.text for revision in chain.revisions)]
    return [
        Round(
            revision.principle_id,
            revision.critique,
            word_diff(before[number], revision.text),
            revision.finish_reason == "length",
        )
        for number, revision in enumerate(chain.revisions)
    ]


def word_diff(before: str, after: str) -> list[Piece]:
    """What became of `before`, word by word: the same and added pieces together are `after`, the
    same and removed ones `before`."""
    # A word takes the space before it along: spaces by themselves are all alike, and to match them
    # takes the square of their number.
    old, new = (re.findall(r"\s*\S+|\s+", text) for text in (before, after))
    pieces = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(Piece("same", "".join(new[k:m])))
            continue
        found = (Piece("removed", "".join(old[i:j])), Piece("added", "".join(new[k:m])))
        pieces += [piece for piece in found if piece.text]
    return pieces
