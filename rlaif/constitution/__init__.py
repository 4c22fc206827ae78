"""Constitutions: the file, what it means, how it is checked, and other people's formats."""

from rlaif.constitution.file import (
    ConstitutionFile,
    Place,
    json_schema,
    load_constitution,
    read_constitution,
)
from rlaif.constitution.model import (
    EVERY,
    WORDINGS,
    Case,
    Constitution,
    Example,
    Principle,
    facts,
)

__all__ = [
    "EVERY",
    "WORDINGS",
    "Case",
    "Constitution",
    "ConstitutionFile",
    "Example",
    "Place",
    "Principle",
    "facts",
    "json_schema",
    "load_constitution",
    "read_constitution",
]
