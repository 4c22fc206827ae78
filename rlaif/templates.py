"""Judge prompts from Jinja files, one file a conversation.

    {% message "user" %} … {% endmessage %}

marks each message; nothing but white space may stand outside one. `{% shared %}` in a message marks
the end of what is the same for all principles. What a model wrote goes through
`| fence`: it is data, and cannot close its fence, be evaluated, or speak as another role.
"""

from __future__ import annotations

import re
import secrets
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel

from rlaif.errors import SetupError
from rlaif.files import digest, find, packaged
from rlaif.types import Message, SharedMessage

ROLES = ("system", "user", "assistant")
_Other = nodes.Include | nodes.Extends | nodes.Import | nodes.FromImport
# Tokens by which chat templates open and close turns. A tokenizer turns them into control tokens
# even inside a user's text, so a response that spells one could end the judge's prompt.
CONTROL = re.compile(
    r"<[|｜](?=[^\s|｜]{1,40}[|｜]>)|<(?=/?(?:s|bos|eos|start_of_turn|end_of_turn)>)|\[(?=/?INST\])",
    re.IGNORECASE,
)
ZERO_WIDTH_SPACE = "\u200b"
# No response can contain it: it is made anew in each process.
_BORDER = f"\0{secrets.token_hex(16)}\0"

_messages: ContextVar[list[Message]] = ContextVar("messages")


def defuse(text: str) -> str:
    """`text` with the control tokens of chat templates broken by a zero-width space."""
    return CONTROL.sub(lambda match: match.group() + ZERO_WIDTH_SPACE, text)


def fence(text: str) -> str:
    """`text`, defused, between two lines of tildes longer than any run of tildes inside it."""
    runs = [len(run) for run in re.findall("~+", text)]
    bar = "~" * max([4, *(run + 1 for run in runs)])
    return f"{bar}\n{defuse(text)}\n{bar}"


class Fenced(NamedTuple):
    title: str
    text: str


def fenced_blocks(text: str) -> list[Fenced]:
    """The blocks that `fence` made in a rendered prompt, with the line above each as its title."""
    blocks: list[Fenced] = []
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if re.fullmatch("~{4,}", lines[at]) and lines[at] in lines[at + 1 :]:
            end = lines.index(lines[at], at + 1)
            title = lines[at - 1].strip().rstrip(":") if at else ""
            blocks.append(Fenced(title, "\n".join(lines[at + 1 : end])))
            at = end
        at += 1
    return blocks


class _MessageBlock(Extension):
    """`{% message ROLE %} … {% endmessage %}`: collects a message instead of printing text, so no
    rendered text can pretend to be the border between two messages."""

    tags = {"message"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        role = parser.parse_expression()
        body = parser.parse_statements(("name:endmessage",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_collect", [role]), [], [], body).set_lineno(line)

    def _collect(self, role: str, caller: Callable[[], str]) -> str:
        if role not in ROLES:
            raise jinja2.TemplateRuntimeError(
                f"a message has the role {role!r}; roles are {', '.join(ROLES)}"
            )
        above, _, below = caller().strip().partition(_BORDER)
        message = {"role": role, "content": above + below.replace(_BORDER, "")}
        _messages.get().append(
            SharedMessage.model_validate({**message, "shared": len(above)})
            if below and above
            else Message.model_validate(message)
        )
        return ""


class _SharedTag(Extension):
    """`{% shared %}`: what stands above it in the message is the same for other principles too, so
    a provider may keep it in a cache. Prints nothing."""

    tags = {"shared"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Output([nodes.TemplateData(_BORDER)]).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which a record is its fields and nothing more: pydantic's `parse_raw` would read
    a pickle, and so run anything."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, BaseModel):
            return attr in type(obj).model_fields
        return super().is_safe_attribute(obj, attr, value)


class Template:
    """A judge prompt, checked when loaded."""

    def __init__(self, name: str, variables: Iterable[str]) -> None:
        """Finds `name` (path, working directory's `prompts/`, ours) and checks it.

        `variables` are the names that the caller will give. Raises SetupError with file and line
        for a syntax error, a variable that is not among them, or a template without messages.
        """
        self.path = find("prompts", name, ".j2")
        # A file in the working directory's prompts/ stands in for ours of that name, also where
        # one of ours includes it.
        self._folders = [Path("prompts"), packaged("prompts")]
        if self.path.parent != packaged("prompts"):
            self._folders.insert(0, self.path.parent)
        self._environment = _Environment(
            loader=jinja2.FileSystemLoader(self._folders),
            undefined=jinja2.StrictUndefined,
            extensions=[_MessageBlock, _SharedTag],
            keep_trailing_newline=True,
            autoescape=False,  # prompts are plain text, not HTML
        )
        self._environment.filters["fence"] = fence
        self._environment.filters["defuse"] = defuse
        self._checked: set[Path] = set()
        self._sources: dict[str, str] = {}
        self._check(self.path, set(variables))
        self._template = self._environment.get_template(self.path.name)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the template and all that it includes."""
        return digest(self._sources)

    def _check(self, path: Path, known: set[str]) -> None:
        if path in self._checked:
            return
        self._checked.add(path)
        try:
            source = path.read_text(encoding="utf-8")
            # The tag changes no prompt: labels and certificates stay what they are.
            self._sources[path.name] = source.replace("{% shared %}", "")
            tree = self._environment.parse(source, filename=str(path))
            self._environment.compile(source, path.name, str(path))
        except jinja2.TemplateSyntaxError as e:
            raise SetupError(f"not a valid template: {e.message}", file=path, line=e.lineno) from e
        except (OSError, UnicodeDecodeError) as e:
            raise SetupError(f"cannot be read: {e}", file=path) from e
        except RecursionError as e:
            raise SetupError("is nested too deeply", file=path, fix="take it apart") from e
        undeclared = meta.find_undeclared_variables(tree)
        for name in sorted(undeclared - known):
            line = min(n.lineno for n in tree.find_all(nodes.Name) if n.name == name)
            raise SetupError(
                f"the variable {name!r} is not given to this template",
                file=path,
                line=line,
                fix=f"it may use: {', '.join(sorted(known))}",
            )
        for node in tree.find_all(nodes.Node):
            if isinstance(node, _Other):
                self._check(self._included(path, node), known)

    def _included(self, path: Path, include: _Other) -> Path:
        name = include.template
        if not (isinstance(name, nodes.Const) and isinstance(name.value, str)):
            # What it would be read from is not known, and so is not in the digest.
            raise SetupError(
                "includes a file without naming it",
                file=path,
                line=include.lineno,
                fix='write {% include "NAME.j2" %}',
            )
        for folder in self._folders:
            if (folder / name.value).is_file():
                return folder / name.value
        raise SetupError(
            f"includes {name.value!r}, which is not there",
            file=path,
            line=include.lineno,
            fix="put the file beside the template",
        )

    def render(self, variables: Mapping[str, Any]) -> tuple[Message, ...]:
        """The conversation. Raises SetupError for what only shows when rendering."""
        token = _messages.set([])
        try:
            outside = self._template.render(variables)
            messages = tuple(_messages.get())
        except Exception as e:  # a template is the user's program: it can raise anything
            file, line = self._place(e)
            raise SetupError(f"cannot be rendered: {e}", file=file, line=line) from e
        finally:
            _messages.reset(token)
        if outside.strip():
            raise SetupError(
                f"text stands outside a message block: {outside.strip()[:60]!r}",
                file=self.path,
                fix='put it inside {% message "user" %} … {% endmessage %}',
            )
        if not messages or messages[-1].role != "user":
            raise SetupError(
                "the last message must be the user's",
                file=self.path,
                fix='end the file with {% message "user" %} … {% endmessage %}',
            )
        return messages

    def _place(self, error: Exception) -> tuple[Path, int | None]:
        """File and line of the template where rendering stopped: Jinja rewrites tracebacks so."""
        folders = (self.path.parent, packaged("prompts"))
        found: tuple[Path, int | None] = (self.path, None)
        for frame, line in traceback.walk_tb(error.__traceback__):
            file = Path(frame.f_code.co_filename)
            if file.suffix == ".j2" and file.parent in folders:
                found = (file, line)
        return found
