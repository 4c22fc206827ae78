"""Everything that can go wrong, in one tree.

RlaifError
├── SetupError              your setup is wrong: never retried, one clear line, exit code 2
│   └── StoreError          the call store cannot be opened or written
├── CallError               one call failed: recorded, counted, never a label
│   ├── CallRejected        asking again would not help (bad request, no such model, refused key)
│   └── CallTransient       asking again may help (timeout, 5xx, cut connection)
│       └── CallRateLimited the provider asks us to wait
├── AskingStopped           no more calls: a budget is spent (exit code 4) or Ctrl-C (130)
├── ProviderDown            a provider fails everything: asking has stopped, exit code 3
├── TooManyFailures         more calls failed than the config allows: exit code 3
├── JudgeFallsShort         the judge does not pass the gate that the config sets: exit code 3
├── ConstitutionFails       a constitution's own tests or its lint: exit code 1
└── TrainingDiverged        a loss or a weight is no longer a finite number: exit code 1
"""

from __future__ import annotations

from pathlib import Path


class RlaifError(Exception):
    """Root of the tree; nothing raises it directly."""

    exit_code = 1


class SetupError(RlaifError):
    """The user's setup is wrong. The message is one line: where, what was found, how to mend it."""

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        fix: str = "",
        file: str | Path | None = None,
        line: int | None = None,
        field: str = "",
    ) -> None:
        place = str(file) if file is not None else ""
        if line is not None:
            place += f":{line}" if place else f"line {line}"
        parts = [part for part in (place, field, problem) if part]
        text = ": ".join(parts)
        if fix:
            text += f" ({fix})"
        super().__init__(" ".join(text.split()))
        self.problem = problem
        self.fix = fix
        self.file = file
        self.line = line
        self.field = field

    def at(self, field: str) -> SetupError:
        """The same error at a field; one of another kind, or with a place of its own, as it is."""
        if self.field or self.file is not None or type(self) is not SetupError:
            return self
        return SetupError(self.problem, fix=self.fix, field=field)


class StoreError(SetupError):
    """The call store cannot be opened or written."""


class CallError(RlaifError):
    """One call to a model failed. It never becomes a label."""

    reason = "call_failed"

    def __init__(self, message: str, *, paid: bool = False) -> None:
        """`paid`: the model has answered, and we can make nothing of it."""
        super().__init__(message)
        self.paid = paid


class CallRejected(CallError):
    """The provider will answer the same again: bad request, unknown model, wrong key."""

    reason = "rejected"

    def __init__(self, message: str, *, paid: bool = False, status: int | None = None) -> None:
        """`status`: of HTTP, where that is what refused it."""
        super().__init__(message, paid=paid)
        self.status = status


class CallTransient(CallError):
    """The provider may answer next time: timeout, 5xx, cut connection. It asks us to wait `wait_s`
    seconds (None: it did not say how long)."""

    reason = "transient"

    def __init__(self, message: str, wait_s: float | None = None, *, paid: bool = False) -> None:
        super().__init__(message, paid=paid)
        self.wait_s = wait_s


class CallRateLimited(CallTransient):
    """The provider is asked too much."""

    reason = "rate_limited"


class AskingStopped(RlaifError):
    """Asking has ended before everything was asked: a budget is spent, or the user stopped it. What
    was in flight is answered and stored; the same command goes on."""

    exit_code = 4


class ProviderDown(RlaifError):
    """A provider answers nothing any more; asking has stopped. What was answered is stored."""

    exit_code = 3


class TooManyFailures(RlaifError):
    """More calls failed, or more comparisons ended unscored, than the config allows."""

    exit_code = 3


class JudgeFallsShort(RlaifError):
    """The judge does not show on gold pairs what `judge.gate` demands; nothing was labelled."""

    exit_code = 3


class ConstitutionFails(RlaifError):
    """A constitution does not lint, or a judge does not pass its tests; said before this."""


class TrainingDiverged(RlaifError):
    """The loss or a weight is no longer a finite number. Nothing is saved."""
