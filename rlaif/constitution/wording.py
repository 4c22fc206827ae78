"""The Jinja in a principle's wordings: a sandbox that knows three names."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import object_type_repr

from rlaif.types import Prompt

KNOWN = ("text", "tags", "metadata")
MARKUP = re.compile(r"\{\{|\{%|\{#")

FILTERS = (
    "abs capitalize count d default first float int join last length list lower map max min reject "
    "replace reverse round select sort sum title trim truncate unique upper wordcount"
)
"""Those that say the same each time and cannot fill the memory by themselves."""
REFUSED = ("format", "format_map", "mro", "center", "expandtabs", "ljust", "rjust", "zfill")
"""Attributes and methods; a width fills the memory as well as a product does."""
MOST_SETS = 8
OPERATOR = {nodes.Add: "+", nodes.Concat: "~", nodes.Mul: "*", nodes.Pow: "**", nodes.Mod: "%"}
MACROS = (nodes.Macro, nodes.CallBlock)
OTHER_FILES = (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)


def _as_text(value: Any) -> Any:
    """Refuses what would be said as an address in memory, and so another way each time."""
    if isinstance(value, (str, int, float, jinja2.Undefined)):
        return value
    if isinstance(value, (tuple, list)) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    raise TypeError(f"a {type(value).__name__} is no text")


class _Metadata:
    """A prompt's metadata, of which a wording sees the values alone: no method of a dict."""

    def __init__(self, of: Mapping[str, Any]) -> None:
        self._of = of

    def __getitem__(self, key: str) -> Any:
        return self._of[key]

    def __contains__(self, key: object) -> bool:
        return key in self._of


_environment = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # prompts are plain text, not HTML
    keep_trailing_newline=True,
    finalize=_as_text,
)
# A wording needs no `range` or `lipsum`; what is not there cannot be misused.
_environment.globals.clear()
_environment.filters = {name: _environment.filters[name] for name in FILTERS.split()}


class WordingError(ValueError):
    """What is wrong with a wording, and on which of its own lines."""

    def __init__(
        self, problem: str, line: int = 1, *, sought: str = "", lacking: bool = False
    ) -> None:
        super().__init__(problem)
        self.line = line
        self.sought = sought
        """The name that is wrong; empty where it is none."""
        self.lacking = lacking
        """Whether it is just the prompt that lacks what the wording uses."""


def template(text: str) -> str:
    """`text` as Jinja that renders to just that text."""
    if not MARKUP.search(text):
        return text
    return "{{ " + repr(text) + " }}"


def render(wording: str, given: Mapping[str, Any] | None) -> str:
    """The wording for `text` and `prompt`; with None it is only checked.

    Raises WordingError for a syntax error, a name that is not given, a reach for Python's
    internals, and metadata that the prompt lacks.
    """
    if not MARKUP.search(wording):
        return wording
    compiled = _compiled(wording)
    if given is None:
        return wording
    prompt: Prompt = given["prompt"]
    names = {"text": given["text"], "tags": prompt.tags, "metadata": _Metadata(prompt.metadata)}
    try:
        said = compiled.render(names).strip()
        said.encode()  # an escape may hold half a character
        return said
    except jinja2.UndefinedError as e:
        said = str(e.message).replace(object_type_repr(names["metadata"]), "metadata")
        raise WordingError(f"{said} for the prompt {prompt.id!r}", lacking=True) from e
    except Exception as e:  # a wording is the user's program: it can raise anything
        raise WordingError(f"cannot be rendered for the prompt {prompt.id!r}: {e}") from e


@functools.lru_cache(maxsize=1024)
def _compiled(wording: str) -> jinja2.Template:
    try:
        tree = _environment.parse(wording)
        _check(tree)
        return _environment.from_string(wording)
    except jinja2.TemplateSyntaxError as e:
        raise WordingError(f"not valid Jinja: {e.message}", e.lineno) from e
    except WordingError:
        raise
    except (RecursionError, SyntaxError, ValueError) as e:
        # Python has its own limits to nesting and to numbers.
        raise WordingError("is nested too deeply, or holds too long a number") from e


def _check(tree: nodes.Template) -> None:
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Filter)):
        reached = _reached(node)
        if reached.startswith("_") or reached in REFUSED:
            problem = f"reaches for {reached!r}, which a wording may not"
            raise WordingError(problem, node.lineno, sought=reached)
        if isinstance(node, nodes.Getattr):
            if (of := _of_text(node)) is not None:
                raise WordingError(f"{of} has no {reached!r}", node.lineno, sought=reached)
            if id(node) not in called and not _holds_values(node) and hasattr(str, reached):
                problem = f"names {reached!r} without calling it: write {reached}()"
                raise WordingError(problem, node.lineno, sought=reached)
    for sum_ in tree.find_all(tuple(OPERATOR)):
        problem = f"uses {OPERATOR[type(sum_)]!r}, which a wording may not"
        raise WordingError(problem, sum_.lineno)
    if len(list(tree.find_all(nodes.Assign))) > MOST_SETS:
        raise WordingError(f"sets more than {MOST_SETS} names", 1)
    for other in tree.find_all(OTHER_FILES):
        raise WordingError("a wording includes no other file", other.lineno)
    for loop in tree.find_all(nodes.For):
        if loop.recursive or next(loop.find_all(nodes.For), None) is not None:
            raise WordingError("a wording has no loop in a loop", loop.lineno, sought="for")
    for macro in tree.find_all(MACROS):
        raise WordingError("a wording has no macros", macro.lineno, sought="macro")
    for name in sorted(meta.find_undeclared_variables(tree)):
        if name not in KNOWN:
            line = min(n.lineno for n in tree.find_all(nodes.Name) if n.name == name)
            raise WordingError(
                f"the variable {name!r} is not given to a wording; it may use: {', '.join(KNOWN)}",
                line,
                sought=name,
            )


def _holds_values(node: nodes.Getattr) -> bool:
    """Whether its attributes are values whatever they are called, as `loop.index` is."""
    return isinstance(node.node, nodes.Name) and node.node.name in ("metadata", "loop")


def _of_text(node: nodes.Getattr) -> str | None:
    """`text` or `tags`, where it has no such attribute."""
    match node.node:
        case nodes.Name(name="text") if not hasattr(str, node.attr):
            return "text"
        case nodes.Name(name="tags") if not hasattr(tuple, node.attr):
            return "tags"
    return None


def _reached(node: nodes.Node) -> str:
    match node:
        case nodes.Getattr():
            return str(node.attr)
        case nodes.Getitem(arg=nodes.Const(value=value)):
            return str(value)
        case nodes.Filter():
            return str(node.name)
    return ""
