"""What a model string means."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from rlaif.errors import SetupError
from rlaif.redact import remember

Scheme = Literal["vllm", "embedded", "openai", "anthropic", "http", "fake"]
SCHEMES = ("vllm", "embedded", "openai", "anthropic", "http", "fake")
ANTHROPIC_KEY, ANTHROPIC_TOKEN = "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"
SERVICE = "rlaif"
"""Under which keys stand in a keyring."""
FORMS = (
    "vllm/ORG/NAME, vllm/./DIR, embedded/smollm2-135m-instruct, openai/NAME, anthropic/NAME, "
    "http://HOST:PORT/v1#NAME (several servers: http://A/v1,http://B/v1#NAME), fake/NAME"
)


class ModelName(NamedTuple):
    """A parsed model string."""

    scheme: Scheme
    rest: str
    """What stands behind the scheme; for `http`, the served model's name."""
    base_urls: tuple[str, ...] = ()
    """Of the servers, for `http`."""

    @property
    def has_weights(self) -> bool:
        """Whether training can start from this model."""
        return self.scheme in ("vllm", "embedded")

    @property
    def directory(self) -> Path | None:
        """The local folder, for `vllm/./DIR`, `vllm/../DIR` and `vllm//DIR`."""
        if self.scheme == "vllm" and self.rest.startswith(("./", "../", "/", "~")):
            return Path(self.rest).expanduser()
        return None


def parse_model(text: str, field: str) -> ModelName:
    """Raises SetupError that names the known forms, or the nearest one."""
    # Whatever the scheme: a misspelt one would be quoted below, with the secret. The address would
    # carry it into configs, reports and this very line.
    if re.search(r"://[^/#]*@", text):
        raise SetupError(
            "the address of the server holds a user or password",
            field=field,
            fix="leave it out and set RLAIF_HTTP_API_KEY",
        )
    if re.search(r"://.*\?", text, re.DOTALL):  # behind the # too
        raise SetupError(
            "the address of the server holds a query",
            field=field,
            fix="leave it out; a key is read from RLAIF_HTTP_API_KEY",
        )
    if match := re.fullmatch(r"(https?://[^#]+)#(.+)", text):
        return ModelName("http", match[2], _addresses(match[1], field))
    if text.startswith(("http://", "https://")):
        raise SetupError(
            f"{text!r} does not say which model",
            field=field,
            fix=f"add the served model's name: {text}#NAME",
        )
    scheme, slash, rest = text.partition("/")
    for known in ("vllm", "embedded", "openai", "anthropic", "fake"):
        if scheme == known and slash and rest:
            return ModelName(known, rest)
    near = difflib.get_close_matches(scheme, SCHEMES, n=1)
    raise SetupError(
        f"unknown model {text!r}",
        field=field,
        fix=(f"did you mean {near[0]}/…? " if near else "") + f"known forms: {FORMS}",
    )


def _addresses(text: str, field: str) -> tuple[str, ...]:
    """`http://A/v1,http://B/v1`, one or several."""
    found = tuple(part.strip().rstrip("/") for part in text.split(","))
    for address in found:
        if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", address):
            raise SetupError(
                f"{address!r} is no address of a server",
                field=field,
                fix="several are written http://A:8000/v1,http://B:8000/v1#NAME",
            )
    if twice := [address for address in found if found.count(address) > 1]:
        raise SetupError(f"{twice[0]!r} stands twice", field=field, fix="name each server once")
    return found


def api_key(*variables: str, field: str) -> tuple[str, str]:
    """The first variable that is set or stands in the system's keyring, and the key in it. Raises
    SetupError that names the variables, never a value."""
    for variable in variables:
        if value := os.environ.get(variable, "") or _from_keyring(variable):
            return variable, value
    raise SetupError(
        f"no API key: {' and '.join(variables)} {'is' if len(variables) == 1 else 'are'} not set",
        field=field,
        fix=f"export {variables[0]}=…, or `keyring set {SERVICE} {variables[0]}`",
    )


def _from_keyring(variable: str) -> str:
    """The key of that name in the system's keyring; empty where the library `keyring` is not
    installed or holds none."""
    if importlib.util.find_spec("keyring") is None:
        return ""
    import keyring
    from keyring.errors import KeyringError

    try:
        secret: str = keyring.get_password(SERVICE, variable) or ""
    except KeyringError:
        return ""  # locked, or this machine has none
    remember(secret)
    return secret


def quoted(message: str, secret: str) -> str:
    """What a provider said, fit for one line; a server may repeat the key in it, we do not."""
    text = " ".join(message.split())
    return (text.replace(secret, "[key]") if secret else text)[:300]


def is_final(status: int) -> bool:
    """Whether a failed request with this HTTP status would fail again: 4xx, but for those that
    are about this moment (408 timeout, 409 conflict, 425 too early)."""
    return 400 <= status < 500 and status not in (408, 409, 425)
