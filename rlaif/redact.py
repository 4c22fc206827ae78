"""Secrets, kept out of every text that leaves for a file or a terminal."""

from __future__ import annotations

import base64
import os
from urllib.parse import quote

VARIABLES = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "RLAIF_HTTP_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
"""Where keys come from."""
SHORTEST = 8
"""Less is no secret, and would be found in the middle of words."""
HIDDEN = "[key]"
_remembered: set[str] = set()


def remember(secret: str) -> None:
    """A secret that stands in no variable: made here, or from a keyring."""
    _remembered.add(secret)


def redacted(text: str) -> str:
    """The text without any secret that is known, in plain, in a URL or as base64."""
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def _secrets() -> list[str]:
    plain = {os.environ.get(name, "") for name in VARIABLES} | _remembered
    found = []
    for secret in plain:
        if len(secret) >= SHORTEST:
            coded = base64.b64encode(secret.encode()).decode().rstrip("=")
            found += [secret, quote(secret, safe=""), coded]
    # The longest first: one may be the beginning of another.
    return sorted(set(found), key=len, reverse=True)
