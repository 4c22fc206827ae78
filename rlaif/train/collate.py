"""Batches of groups: packed (rows of whole groups) or unpacked (one row a response).

Both give the same index interface, so a scorer does not know which it reads. B rows, T columns,
N responses, M response tokens, C comparisons; M in `draws_CM` are members of an ensemble.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NotRequired, TypedDict

import torch

from rlaif.train.groups import EncodedGroup


class Batch(TypedDict):
    """A plain dict, which `transformers.Trainer` moves to its device."""

    input_ids_BT: torch.Tensor
    mask: torch.Tensor
    """Packed: (B, 1, T, T), true where a query may see a key. Unpacked: (B, T), 1 for a token."""
    position_ids_BT: NotRequired[torch.Tensor]
    """Packed only: positions restart after the prompt for each response."""
    last_row_N: torch.Tensor
    last_column_N: torch.Tensor
    """Where each conversation's last token is that is not padding."""
    row_M: torch.Tensor
    column_M: torch.Tensor
    """Where each response token is predicted: the position before it."""
    target_M: torch.Tensor
    response_M: torch.Tensor
    """Which of the N responses each response token belongs to."""
    reference_N: torch.Tensor
    first_C: torch.Tensor
    second_C: torch.Tensor
    p_first_C: torch.Tensor
    weight_C: torch.Tensor
    draws_CM: NotRequired[torch.Tensor]
    """In an ensemble: how often each member drew each comparison's group."""


class SplitGroup(TypedDict):
    """A group of more tokens than may be computed at once."""

    whole: Batch
    """The comparisons; its tokens are not computed."""
    parts: list[Batch]
    """The responses in order, a few to a part, without comparisons."""


class Step(TypedDict):
    """The groups of one optimiser step, in parts that are computed one after the other."""

    parts: list[Batch]
    split: list[SplitGroup]
    names: list[list[str]]
    """The prompts of each part, and then of each split group."""
    idle_scorings: list[Batch]
    """One response for each pass without a gradient that another process has more, for its split
    groups: all of them must come to as many."""
    idle: list[Batch]
    """The same for passes with a gradient."""


def collate_step(
    groups: Sequence[EncodedGroup],
    pad_token_id: int,
    tokens_at_once: int,
    *,
    packed: bool,
    rank: int = 0,
    world: int = 1,
) -> Step:
    """The parts of a step, of at most `tokens_at_once` tokens each, padding included; a prompt and
    one response are never divided. Of several processes (`world`) the one numbered `rank` gets its
    share of the groups."""
    if world == 1:
        return _collate_share(groups, pad_token_id, tokens_at_once, packed=packed)
    shares = divided(groups, world, packed=packed)
    # Each process works out what all of them do: they must meet in as many passes.
    counts = [_passes(share, tokens_at_once, packed=packed) for share in shares]
    step = _collate_share(shares[rank], pad_token_id, tokens_at_once, packed=packed)
    scorings, passes = (max(column) for column in zip(*counts, strict=True))
    shortest = min(groups, key=lambda group: group.longest)
    idle = collate([_some(shortest, [0])], pad_token_id, packed=packed)
    step["idle_scorings"] = [idle] * (scorings - counts[rank][0])
    step["idle"] = [idle] * (passes - counts[rank][1])
    return step


def divided(
    groups: Sequence[EncodedGroup], world: int, *, packed: bool
) -> list[list[EncodedGroup]]:
    """A share of the groups for each process, of about as many tokens; one may be empty."""
    shares: list[list[EncodedGroup]] = [[] for _ in range(world)]
    tokens = [0] * world
    for group in sorted(groups, key=lambda group: -_tokens(group, packed=packed)):
        least = tokens.index(min(tokens))
        shares[least].append(group)
        tokens[least] += _tokens(group, packed=packed)
    return shares


def _passes(
    groups: Sequence[EncodedGroup], tokens_at_once: int, *, packed: bool
) -> tuple[int, int]:
    """Passes without and with a gradient that a share takes."""
    whole, large = _fitting(groups, tokens_at_once, packed=packed)
    parts = sum(1 for _ in in_parts(whole, tokens_at_once, packed=packed))
    of_large = sum(1 for group in large for _ in pieces(group, tokens_at_once, packed=packed))
    return of_large, parts + of_large


def _fitting(
    groups: Sequence[EncodedGroup], tokens_at_once: int, *, packed: bool
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """The groups that may be computed at once, and those that are too large."""
    fit = [_tokens(group, packed=packed) <= tokens_at_once for group in groups]
    whole = [group for group, fits in zip(groups, fit, strict=True) if fits]
    return whole, [group for group, fits in zip(groups, fit, strict=True) if not fits]


def _collate_share(
    groups: Sequence[EncodedGroup], pad_token_id: int, tokens_at_once: int, *, packed: bool
) -> Step:
    whole, large = _fitting(groups, tokens_at_once, packed=packed)
    parts = [[whole[i] for i in part] for part in in_parts(whole, tokens_at_once, packed=packed)]
    return Step(
        parts=[collate(part, pad_token_id, packed=packed) for part in parts],
        split=[
            SplitGroup(
                whole=collate([group], pad_token_id, packed=False),
                parts=[
                    collate([piece], pad_token_id, packed=packed)
                    for piece in pieces(group, tokens_at_once, packed=packed)
                ],
            )
            for group in large
        ],
        names=[*([group.name for group in part] for part in parts), *([g.name] for g in large)],
        idle_scorings=[],
        idle=[],
    )


def in_parts(
    groups: Sequence[EncodedGroup], tokens_at_once: int, *, packed: bool
) -> Iterator[list[int]]:
    """Indices of the groups in parts of like lengths, longest first, of at most `tokens_at_once`
    tokens with their padding; a larger group is a part by itself."""
    longest_first = sorted(
        range(len(groups)),
        key=lambda i: -(groups[i].packed_length if packed else groups[i].longest),
    )
    part: list[int] = []
    rows = _Rows(packed=packed)
    for i in longest_first:
        if part and rows.tokens_with(groups[i]) > tokens_at_once:
            yield part
            part, rows = [], _Rows(packed=packed)
        rows.add(groups[i])
        part.append(i)
    if part:
        yield part


class _Rows:
    """Rows of groups, as wide as the first group that is added: that must be the longest. A packed
    row takes groups as long as they fit, so that little of it is padding."""

    def __init__(self, *, packed: bool) -> None:
        self._packed = packed
        self._width = 0
        self.rows: list[list[int]] = []
        """Which groups stand in each row, by the order in which they were added."""
        self._left: list[int] = []
        self._added = 0

    def tokens_with(self, group: EncodedGroup) -> int:
        """Tokens, padding included, with one more group."""
        if not self._packed:
            return (len(self.rows) + len(group.response_ids)) * max(self._width, group.longest)
        new = self._place(group.packed_length) is None
        return (len(self.rows) + new) * max(self._width, group.packed_length)

    def add(self, group: EncodedGroup) -> None:
        if not self._packed:
            self._width = max(self._width, group.longest)
            self.rows += [[self._added]] * len(group.response_ids)
        else:
            length = group.packed_length
            self._width = max(self._width, length)
            place = self._place(length)
            if place is None:
                place = len(self.rows)
                self.rows.append([])
                self._left.append(self._width)
            self.rows[place].append(self._added)
            self._left[place] -= length
        self._added += 1

    def _place(self, length: int) -> int | None:
        return next((i for i, left in enumerate(self._left) if left >= length), None)


def _tokens(group: EncodedGroup, *, packed: bool) -> int:
    return group.packed_length if packed else group.longest * len(group.response_ids)


def pieces(group: EncodedGroup, tokens_at_once: int, *, packed: bool) -> Iterator[EncodedGroup]:
    """The group's responses in order, without their comparisons, as many to a piece as fit into
    `tokens_at_once` with the prompt; one response at least."""
    ks: list[int] = []
    for k in range(len(group.response_ids)):
        if ks and _tokens(_some(group, [*ks, k]), packed=packed) > tokens_at_once:
            yield _some(group, ks)
            ks = []
        ks.append(k)
    yield _some(group, ks)


def _some(group: EncodedGroup, ks: Sequence[int]) -> EncodedGroup:
    return dataclasses.replace(
        group,
        response_ids=[group.response_ids[k] for k in ks],
        reference_K=tuple(group.reference_K[k] for k in ks),
        comparisons=(),
    )


def collate(groups: Sequence[EncodedGroup], pad_token_id: int, *, packed: bool) -> Batch:
    """A batch of groups; responses are numbered through in the order of the groups."""
    longest_first = sorted(range(len(groups)), key=lambda i: -groups[i].packed_length)
    arranged = _Rows(packed=True)
    for i in longest_first if packed else ():
        arranged.add(groups[i])
    row_of = {longest_first[i]: row for row, those in enumerate(arranged.rows) for i in those}
    rows: list[list[int]] = [[] for _ in arranged.rows]
    owners: list[list[int]] = [[] for _ in arranged.rows]
    blocks: list[list[int]] = [[] for _ in arranged.rows]
    positions: list[list[int]] = [[] for _ in arranged.rows]
    last: list[tuple[int, int]] = []
    tokens: list[tuple[int, int, int, int]] = []
    comparisons: list[tuple[int, int, float, float]] = []
    for number, group in enumerate(groups):
        offset, length = len(last), len(group.prompt_ids)
        comparisons += [
            (offset + c.first, offset + c.second, c.p_first, c.weight) for c in group.comparisons
        ]
        row = begin = 0
        for k, ids in enumerate(group.response_ids):
            if not packed:
                row, begin = len(rows), 0
                for lists in (rows, owners, blocks, positions):
                    lists.append([])
            elif k == 0:
                row = row_of[number]
                begin = len(rows[row])
            if k == 0 or not packed:
                rows[row] += group.prompt_ids
                blocks[row] += [0] * length
                positions[row] += range(length)
                owners[row] += [number] * length
            start = len(rows[row])
            rows[row] += ids
            blocks[row] += [k + 1] * len(ids)
            positions[row] += range(length, length + len(ids))
            owners[row] += [number] * len(ids)
            columns = [*range(begin, begin + length), *range(start, start + len(ids))]
            last.append((row, columns[_last_token([*group.prompt_ids, *ids], pad_token_id)]))
            for i, target in enumerate(ids):
                tokens.append((row, columns[length + i - 1], target, offset + k))
    batch = Batch(
        input_ids_BT=_padded(rows, pad_token_id),
        mask=(
            _packed_mask(_padded(owners, -1), _padded(blocks, 0))
            if packed
            else (_padded(owners, -1) >= 0).long()
        ),
        last_row_N=_indices(row for row, _ in last),
        last_column_N=_indices(column for _, column in last),
        row_M=_indices(row for row, _, _, _ in tokens),
        column_M=_indices(column for _, column, _, _ in tokens),
        target_M=_indices(target for _, _, target, _ in tokens),
        response_M=_indices(response for _, _, _, response in tokens),
        reference_N=torch.tensor([value for group in groups for value in group.reference_K]),
        first_C=_indices(first for first, _, _, _ in comparisons),
        second_C=_indices(second for _, second, _, _ in comparisons),
        p_first_C=torch.tensor([p for _, _, p, _ in comparisons]),
        weight_C=torch.tensor([weight for _, _, _, weight in comparisons]),
    )
    if groups[0].draws:
        batch["draws_CM"] = torch.tensor(
            [group.draws for group in groups for _ in group.comparisons], dtype=torch.float32
        ).reshape(len(comparisons), len(groups[0].draws))
    if packed:
        batch["position_ids_BT"] = _padded(positions, 0)
    return batch


def _indices(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def _last_token(ids: list[int], pad_token_id: int) -> int:
    """Where a plain `AutoModelForSequenceClassification` reads its score: the last token that is
    not the padding token, which is not the last token where padding and end are the same."""
    return next((i for i in reversed(range(len(ids))) if ids[i] != pad_token_id), 0)


def _packed_mask(owner_BT: torch.Tensor, block_BT: torch.Tensor) -> torch.Tensor:
    """Block 0 is a prompt, k + 1 its k-th response; owner -1 is padding. A token sees its group's
    prompt and its own response, up to itself; padding sees padding, because a row that sees nothing
    would give NaN."""
    width = block_BT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    same_group_BTT = owner_BT.unsqueeze(2) == owner_BT.unsqueeze(1)
    key_B1T = block_BT.unsqueeze(1)
    seen_BTT = causal_TT & same_group_BTT & ((key_B1T == 0) | (key_B1T == block_BT.unsqueeze(2)))
    return seen_BTT.unsqueeze(1)
