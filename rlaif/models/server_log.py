"""What a vLLM server's own output says: what it does, why it died, what it had too much of."""

from __future__ import annotations

import re

_LOG_PREFIX = re.compile(
    r"^(?:\([\w. ]+ pid=\d+\) ?)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\] ?)?"
)
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit): \S|^\S+: error: "
)
_DOING = re.compile(r"INFO \d\d-\d\d [\d:]+ \[[^\]]+\] ([A-Z].*)")
_WRAPPER = re.compile(r"initialization failed|See root cause above|died unexpectedly")
_TRACEBACK = re.compile(r"^(?:Traceback \(|  File |    |The above exception|During handling)")


def _messages(output: str) -> list[str]:
    """The lines of vLLM's log without process, level, time and place."""
    lines = (_LOG_PREFIX.sub("", line).rstrip() for line in output.splitlines())
    return [line for line in lines if line]


def last_line(output: str) -> str:
    """The last message of a server's log that says what it does."""
    doing = _DOING.findall(output)
    return doing[-1][:160].rstrip() if doing else "its libraries are loading"


def cause_of_death(output: str, at_most: int = 600) -> str:
    """The real error in a dead server's log: the last exception that is not a report of another
    process's exception, with the line that continues it; without any, the last five lines."""
    lines = _messages(output)
    found = [
        index
        for index, line in enumerate(lines)
        if _EXCEPTION.match(line) and not _WRAPPER.search(line)
    ]
    if found:
        told = lines[found[-1] :][:1]
        # pydantic says what is wrong on the line after the exception's name.
        told += [line for line in lines[found[-1] + 1 :][:1] if line.startswith("  Value error")]
    else:
        told = [line for line in lines if not _TRACEBACK.match(line)][-5:]
    return " | ".join(line.strip() for line in told)[:at_most] or "it said nothing"


_MEMORY = {
    "kv cache": re.compile(
        r"is less than requested memory for kv|\bMemoryError|Cannot allocate memory|bad_alloc"
        r"|not enough memory|DefaultCPUAllocator",
        re.IGNORECASE,
    ),
    "utilization": re.compile(r"is less than desired GPU memory utilization"),
    "sequences": re.compile(r"out of memory|OutOfMemoryError", re.IGNORECASE),
}


def wanted_less(output: str) -> str:
    """What a server that died at its start had too much of: `kv cache`, `utilization` (of a GPU),
    `sequences` (at once, on a GPU); empty where memory was not the cause."""
    cause = cause_of_death(output)
    return next((what for what, words in _MEMORY.items() if words.search(cause)), "")
