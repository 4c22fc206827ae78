"""What a study of human against AI labels found."""

from __future__ import annotations

from rlaif.types import Record, Split


class HumanSection(Record):
    """What people's data held, and what was left out of it."""

    sets: tuple[str, ...]
    """Paths as they were given."""
    sha256: tuple[str, ...]
    layout: str
    rows: int
    """Read."""
    skipped: dict[str, int]
    """Reason -> rows that hold no usable pair."""
    level: int
    """Pairs that people call equally good."""
    repeated: int
    """Pairs that another row says again."""
    contradicted: int
    """Pairs that other rows decide the other way."""
    leaked: int
    """Prompts taken out of training because their conversation is held out."""
    groups: dict[Split, int]
    pairs: dict[Split, int]
    responses: dict[int, int]
    """K -> groups of K responses."""
    ceiling: float | None
    """How far people agree with each other, where the file says so."""
    ceiling_kind: str
    """What that number means; empty without one."""
