"""`applies_when`: a condition on a prompt's tags and metadata, in a language too small to do harm.

    'code' in tags and not metadata.draft
    metadata.language in ['de', 'fr'] or metadata.turns > 2

Python's own syntax, of which `and`, `or`, `not`, comparisons with constants, `tags` and
`metadata.KEY` (or `metadata['KEY']`) are allowed. A comparison with a key that a prompt lacks does
not hold, except `!=` and `not in`.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from rlaif.types import Scalar

Test = Callable[[Collection[str], Mapping[str, Scalar]], bool]

ORDERINGS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ALLOWED = "and, or, not, 'tag' in tags, and comparisons of metadata.KEY with constants"
LARGEST = 2**53
"""Up to it, whole numbers and floats are the same."""
MOST_CASES = 100_000
"""A condition with more cases than this is not tried out."""


class Condition:
    """A parsed condition; `Condition.of` keeps each text's."""

    def __init__(self, text: str) -> None:
        """Raises ValueError that says what is not allowed and what is."""
        self.text = text.strip()
        self.tags: set[str] = set()
        """Tags that it asks for."""
        self.values: dict[str, list[Scalar]] = {}
        """Metadata key -> constants that it is compared with."""
        self._test: Test = self._parsed() if self.text else lambda tags, metadata: True

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def of(text: str) -> Condition:
        """The condition of this text. Raises ValueError."""
        return Condition(text)

    def holds(self, tags: Collection[str], metadata: Mapping[str, Scalar]) -> bool:
        """Whether a prompt with these tags and metadata meets it."""
        return self._test(tags, metadata)

    @property
    def reachable(self) -> bool:
        """Whether any prompt could meet it: every case that it can tell apart is tried. One with
        too many cases to try is taken to be."""
        return self._too_many or any(self.holds(*case) for case in self._cases())

    @property
    def always(self) -> bool:
        """Whether every prompt meets it. One with too many cases to try is taken not to be met."""
        return not self._too_many and all(self.holds(*case) for case in self._cases())

    @property
    def _too_many(self) -> bool:
        cases = math.prod(len(_candidates(constants)) for constants in self.values.values())
        return bool(cases << len(self.tags) > MOST_CASES)

    def _cases(self) -> Iterator[tuple[Collection[str], Mapping[str, Scalar]]]:
        """One prompt of each kind that the condition can tell apart. A value is told apart from
        the constants, from what lies between, below and above numbers and texts, and from none."""
        keys, tags = sorted(self.values), sorted(self.tags)
        choices = [_candidates(self.values[key]) for key in keys]
        for there in itertools.product((False, True), repeat=len(tags)):
            for values in itertools.product(*choices):
                metadata = {k: v for k, v in zip(keys, values, strict=True) if v is not None}
                yield set(itertools.compress(tags, there)), metadata

    def _parsed(self) -> Test:
        try:
            return self._of(ast.parse(self.text, mode="eval").body)
        except SyntaxError as e:
            raise ValueError(f"not a condition: {e.msg}, column {e.offset}; {_allowed()}") from e
        except (RecursionError, MemoryError) as e:
            raise ValueError("is nested too deeply") from e

    def _of(self, node: ast.expr) -> Test:
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self._of(value) for value in values]
                combined = all if isinstance(op, ast.And) else any
                return lambda tags, metadata: combined(part(tags, metadata) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._of(operand)
                return lambda tags, metadata: not inner(tags, metadata)
            case ast.Constant(value=bool(value)):
                return lambda tags, metadata: value
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._comparison(left, op, right)
            case _:
                key = _key(node)
                if key is None:
                    raise ValueError(f"{ast.unparse(node)!r} is not allowed here; {_allowed()}")
                self.values.setdefault(key, [])
                return lambda tags, metadata: bool(metadata.get(key))

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
        if isinstance(right, ast.Name) and right.id == "tags":
            if not (isinstance(left, ast.Constant) and isinstance(left.value, str)) or not (
                isinstance(op, (ast.In, ast.NotIn))
            ):
                raise ValueError(f"tags are asked for by 'tag' in tags; {_allowed()}")
            tag, wanted = left.value, isinstance(op, ast.In)
            self.tags.add(tag)
            return lambda tags, metadata: (tag in tags) is wanted
        key = _key(left)
        if key is None:
            raise ValueError(f"{ast.unparse(left)!r} is not allowed here; {_allowed()}")
        values = self.values.setdefault(key, [])
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise ValueError(f"metadata is looked for in a list of constants; {_allowed()}")
            many = [_constant(item) for item in right.elts]
            values.extend(many)
            within = isinstance(op, ast.In)
            return lambda tags, metadata: (
                (key in metadata and any(_same(metadata[key], one) for one in many)) is within
            )
        constant = _constant(right)
        values.append(constant)
        if isinstance(op, (ast.Eq, ast.NotEq)):
            equal = isinstance(op, ast.Eq)
            return lambda tags, metadata: (
                (key in metadata and _same(metadata[key], constant)) is equal
            )
        compare = ORDERINGS.get(type(op))
        if compare is None:
            raise ValueError(
                f"{ast.unparse(left)!r} is compared in a way that is none; {_allowed()}"
            )
        return lambda tags, metadata: (
            key in metadata
            and _ordered(metadata[key], constant)
            and compare(metadata[key], constant)
        )


def _allowed() -> str:
    return f"a condition knows {ALLOWED}"


def _key(node: ast.expr) -> str | None:
    """KEY of `metadata.KEY` or `metadata['KEY']`."""
    match node:
        case ast.Attribute(value=ast.Name(id="metadata"), attr=key):
            return key
        case ast.Subscript(value=ast.Name(id="metadata"), slice=ast.Constant(value=str(key))):
            return key
    return None


def _constant(node: ast.expr) -> Scalar:
    match node:
        case ast.Constant(value=str(value) | bool(value)):
            return value
        case ast.Constant(value=int(value) | float(value)) if abs(value) < LARGEST:
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value) | float(value))) if (
            abs(value) < LARGEST
        ):
            return -value
        case (
            ast.Constant(value=int() | float())
            | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()))
        ):
            raise ValueError("a number may be no larger than 2**53")
    raise ValueError(f"{ast.unparse(node)!r} is no constant; {_allowed()}")


def _kind(value: Scalar) -> type:
    """True is no 1 here, and 1 is a 1.0."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _same(one: Scalar, other: Scalar) -> bool:
    return _kind(one) is _kind(other) and one == other


def _ordered(one: Scalar, other: Scalar) -> bool:
    return _kind(one) is _kind(other) and _kind(one) is not bool


def _candidates(constants: Collection[Scalar]) -> list[Scalar | None]:
    # 0 and the empty text are as good as none, and so always tried.
    numbers = sorted({0.0, *(float(c) for c in constants if _kind(c) is float)})
    texts = sorted({c for c in constants if isinstance(c, str)})
    found: list[Scalar | None] = [None, True, False, *numbers, *texts]
    found += [(low + high) / 2 for low, high in itertools.pairwise(numbers)]
    found += [numbers[0] - 1, numbers[-1] + 1]
    # Nothing sorts before the empty text, and nothing lies between a text and itself with a NUL.
    found += ["", "\0", *(text + "\0" for text in texts)]
    return found
