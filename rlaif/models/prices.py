"""What tokens cost: ours, dated and with their sources, and the user's own on top."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlaif.errors import SetupError
from rlaif.models.names import parse_model
from rlaif.types import ChatReply, Record
from rlaif.yamlfile import YamlFile, validate

OURS = Path(__file__).parent.parent / "prices.yaml"
VARIABLE = "RLAIF_PRICES"
MILLION = 1_000_000
FREE_SCHEMES = ("fake", "embedded", "vllm", "transformers")
"""Models that run on our own machine: no one sends a bill."""
SNAPSHOT = re.compile(r"-(\d{4}-\d\d-\d\d|\d{8}|latest)$")
"""How OpenAI and Anthropic name a dated snapshot of a model."""

Usd = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Price(Record):
    """What a million tokens of one model cost, in US dollars."""

    input: Usd
    """A million prompt tokens that come from no cache and go into none."""
    output: Usd
    """A million answered tokens, those of hidden reasoning among them."""
    cached_input: Usd | None = None
    """A million prompt tokens that the provider read from its cache; none: as input."""
    cache_write: Usd | None = None
    """A million prompt tokens billed for writing into the cache; none: as input."""
    batch: float = Field(default=0.5, ge=0.0, le=1.0)
    """What the batch API bills, as a share of all of these. OpenAI's and Anthropic's bill half."""
    date: datetime.date | None = None
    """When the price was seen."""
    source: str = ""
    """Where it was seen."""

    def usd(self, reply: ChatReply) -> float:
        """What the provider bills for a reply, in US dollars."""
        return self.usd_of(
            reply.prompt_tokens,
            reply.completion_tokens,
            cached=reply.cached_tokens,
            written=reply.cache_write_tokens,
            batched=reply.batched,
        )

    def usd_of(
        self,
        prompt: float,
        completion: float,
        *,
        cached: float = 0.0,
        written: float = 0.0,
        batched: bool = False,
    ) -> float:
        """The bill for numbers of tokens, in US dollars; `prompt` counts the `cached` and the
        `written` ones too."""
        read = self.input if self.cached_input is None else self.cached_input
        write = self.input if self.cache_write is None else self.cache_write
        plain = prompt - cached - written
        million_usd = plain * self.input + cached * read + written * write
        million_usd += completion * self.output
        return million_usd / MILLION * (self.batch if batched else 1.0)


FREE = Price(input=0.0, output=0.0)


class _PriceFile(Record):
    models: Mapping[str, Price]
    """Model string, as in a recipe -> what it costs."""


class Prices:
    """The prices of all models that we know."""

    def __init__(self, ours: Mapping[str, Price], users: Mapping[str, Price]) -> None:
        self._ours, self._users = ours, users

    @classmethod
    def load(cls, file: Path | None) -> Prices:
        """Ours, and over them those of the user's YAML file (none: the one that RLAIF_PRICES
        names, if it is set). Raises SetupError with line and field."""
        if file is None and (named := os.environ.get(VARIABLE, "")):
            file = Path(named)
        return cls(_read(OURS), _read(file) if file is not None else {})

    def of(self, model: str) -> Price | None:
        """The price of a model string; None: unknown, which is not nothing.

        A dated snapshot costs what its base name costs, unless it stands there by itself; any other
        name that only begins with a known one is another model, and unknown.
        """
        scheme = model.partition("/")[0]
        for known in (self._users, self._ours):
            if model in known:
                return known[model]
            base = SNAPSHOT.sub("", model)
            if scheme in ("openai", "anthropic") and base in known:
                return known[base]
        return FREE if scheme in FREE_SCHEMES else None

    def stored(self, identity: str, reply: ChatReply) -> float | None:
        """What a stored reply was billed for, by the prices of now; None: unknown. `identity` is
        what the store knows the model by: of a server it holds the model's name and no address, so
        that one is priced where all addresses that the prices name agree."""
        scheme, _, name = identity.partition("/")
        if scheme.startswith("weights@"):
            return 0.0
        prices = [self.of(identity)]
        if scheme == "served":
            known = {**self._ours, **self._users}
            prices = [price for model, price in known.items() if model.endswith(f"#{name}")]
        price = prices[0] if prices and all(price == prices[0] for price in prices) else None
        return None if price is None else price.usd(reply)


def _read(path: Path) -> Mapping[str, Price]:
    source = YamlFile(path)
    found = validate(_PriceFile, source.value, source).models
    for model in found:
        if model.startswith("transformers/"):
            continue
        try:
            parse_model(model, model)
        except SetupError as e:
            raise SetupError(
                e.problem, file=path, line=source.line(("models", model)), field="models", fix=e.fix
            ) from None
    return found
