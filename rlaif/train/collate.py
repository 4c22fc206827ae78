"""Batches of groups: packed (one row a group) or unpacked (one row a response).

Both give the same index interface, so a scorer does not know which it reads. B rows, T columns,
N responses, M response tokens, C comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict

import torch

from rlaif.train.groups import EncodedGroup


class Batch(TypedDict):
    """A plain dict, which `transformers.Trainer` moves to its device."""

    input_ids_BT: torch.Tensor
    mask: torch.Tensor
    """Packed: (B, 1, T, T), added to the attention logits. Unpacked: (B, T), 1 for a token."""
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


def collate(groups: Sequence[EncodedGroup], pad_token_id: int, *, packed: bool) -> Batch:
    """A batch of groups; responses are numbered through in the order of the groups."""
    rows: list[list[int]] = []
    blocks: list[list[int]] = []
    positions: list[list[int]] = []
    last: list[tuple[int, int]] = []
    tokens: list[tuple[int, int, int, int]] = []
    comparisons: list[tuple[int, int, float, float]] = []
    for group in groups:
        offset, length = len(last), len(group.prompt_ids)
        comparisons += [
            (offset + c.first, offset + c.second, c.p_first, c.weight) for c in group.comparisons
        ]
        for k, ids in enumerate(group.response_ids):
            if k == 0 or not packed:
                rows.append(list(group.prompt_ids))
                blocks.append([0] * length)
                positions.append(list(range(length)))
            row, start = len(rows) - 1, len(rows[-1])
            rows[-1] += ids
            blocks[-1] += [k + 1] * len(ids)
            positions[-1] += range(length, length + len(ids))
            columns = [*range(length), *range(start, start + len(ids))]
            last.append((row, columns[_last_token([*group.prompt_ids, *ids], pad_token_id)]))
            for i, target in enumerate(ids):
                tokens.append((row, columns[length + i - 1], target, offset + k))
    batch = Batch(
        input_ids_BT=_padded(rows, pad_token_id),
        mask=_packed_mask(_padded(blocks, -1)) if packed else (_padded(blocks, -1) >= 0).long(),
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


def _packed_mask(block_BT: torch.Tensor) -> torch.Tensor:
    """Block 0 is the prompt, k + 1 the k-th response, -1 padding: see the prompt and yourself."""
    query_BT1, key_B1T = block_BT.unsqueeze(2), block_BT.unsqueeze(1)
    width = block_BT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding sees padding: a row that sees nothing would give NaN.
    seen_BTT = causal_TT & ((key_B1T == 0) | (key_B1T == query_BT1))
    mask_BTT = torch.zeros(seen_BTT.shape).masked_fill(~seen_BTT, torch.finfo(torch.float32).min)
    return mask_BTT.unsqueeze(1)
