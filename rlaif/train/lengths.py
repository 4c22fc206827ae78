"""How long pairs are, told before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.train.groups import encode
from rlaif.train.loading import load_tokenizer
from rlaif.types import PreferenceGroup


def pair_lengths(model: str, groups: Sequence[PreferenceGroup]) -> list[list[int]]:
    """Tokens of each group's prompt with the longer response of each of its comparisons, (C,) a
    group: training leaves a pair out for which this is over `max_length`. Loads the tokenizer alone
    of `model`, a folder or hub name. Raises SetupError as `load_tokenizer` and `encode`."""
    tokenizer = load_tokenizer(model)
    found = []
    for group in groups:
        prompt_ids, response_ids = encode(tokenizer, group.prompt, group.responses, group.ended)
        tokens_K = [len(prompt_ids) + len(ids) for ids in response_ids]
        found.append([max(tokens_K[c.first], tokens_K[c.second]) for c in group.comparisons])
    return found
