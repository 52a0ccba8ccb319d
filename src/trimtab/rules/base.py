"""What a rule is: one function over a subject, and the page that explains it.

A rule's name reads as "allow NAME".  Its docstring is its page: the first paragraph says what it does, and
the sections below are fixed.  Example and "Use instead" are not only shown: a test holds that the rule finds
the first and not the second, and that its fix turns the first into something it no longer finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeVar

from trimtab.findings import Fix, Refusal, Safety, Severity
from trimtab.rules.subject import Subject
from trimtab.source.edit import Edit, RemoveKey, RenameKey, SetValue
from trimtab.source.tree import KeyPath

CODE = re.compile(r"[A-Z]{2}\d{3}")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_HEADINGS = ("Why is this bad?", "Example", "Use instead", "Fix safety", "Source")
_WITH = re.compile(r"With `(?P<flags>[^`]+)`(?P<yaml> as YAML)?:")


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule says of one place; the runner adds the rule's code and the place in the text.

    ``path`` starts at the top of the configuration.  ``at_value`` points at the value, not the key.
    ``severity`` and ``refused`` override the rule's own.  A ``place`` is taken as it is (reading problems).
    """

    path: KeyPath
    message: str
    fix: Fix | None = None
    _: KW_ONLY
    at_value: bool = False
    severity: Severity | None = None
    refused: Refusal | Literal["as the rule"] | None = "as the rule"
    place: tuple[int, int] | None = None
    where: Literal["config", "file", "pointer"] = "config"
    """What ``path`` starts at: the configuration, the file it stands in, or the file that names it."""


Check = Callable[[Subject], Iterable[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A configuration on a rule's page: its text, and the flags it is checked under."""

    text: str
    flags: tuple[str, ...] = ()
    yaml: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A rule's explanation."""

    what: str
    why: str
    example: Sample
    instead: Sample
    fix_safety: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One check with its code, its name and when DeepSpeed stops because of it (None: it does not)."""

    code: str
    name: str
    severity: Severity
    refused: Refusal | None
    check: Check
    docstring: str
    bare: bool = False
    """It needs no readable configuration: it looks at the text, or at the file that names it."""

    @property
    def family(self) -> str:
        """The letters of the code."""
        return self.code.rstrip("0123456789")

    @property
    def page(self) -> Page:
        """The page, read from the docstring."""
        return _page(self.docstring)

    def run(self, subject: Subject) -> Iterator[Hit]:
        """What the rule says of ``subject``."""
        yield from self.check(subject)


_C = TypeVar("_C", bound=Check)
_TABLE: dict[str, Rule] = {}


def rule(
    code: str, name: str, severity: Severity, *, refused: Refusal | None = None, bare: bool = False
) -> Callable[[_C], _C]:
    """Enters the function below into the table of rules."""
    assert CODE.fullmatch(code), code
    assert NAME.fullmatch(name), name
    assert code not in _TABLE, code

    def enter(check: _C) -> _C:
        _TABLE[code] = Rule(
            code=code,
            name=name,
            severity=severity,
            refused=refused,
            check=check,
            docstring=check.__doc__ or "",
            bare=bare,
        )
        return check

    return enter


def entered() -> dict[str, Rule]:
    """The rules that have been entered, by code."""
    return _TABLE


# -- fixes, in words that rules use
# ----------------------------------------------------------------------------


def path(dotted: str) -> KeyPath:
    """``zero_optimization.stage`` as a key path."""
    return tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))


def fix(title: str, *edits: Edit, safety: Safety = "safe") -> Fix:
    """A fix of some edits."""
    return Fix(title=title, safety=safety, edits=edits)


def remove(place: KeyPath, *, safety: Safety = "safe", title: str | None = None) -> Fix:
    """The fix that removes a key."""
    return fix(title or f"Remove {place[-1]}", RemoveKey(key_path=place), safety=safety)


def put(place: KeyPath, value: object, *, safety: Safety = "unsafe", title: str | None = None) -> Fix:
    """The fix that gives a key another value."""
    return fix(
        title or f"Set {'.'.join(map(str, place))} to {shown(value)}",
        SetValue(key_path=place, value=value),
        safety=safety,
    )


def rename(place: KeyPath, name: str, *, safety: Safety = "unsafe") -> Fix:
    """The fix that renames a key."""
    return fix(f"Rename it to {name}", RenameKey(key_path=place, name=name), safety=safety)


def shown(value: object) -> str:
    """A value as it stands in JSON, cut short."""
    import json

    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- pages
# -------------------------------------------------------------------------------------------------------


def _page(docstring: str) -> Page:
    import textwrap

    head, _, rest = docstring.partition("\n")
    lines = [head.strip(), *textwrap.dedent(rest).splitlines()]
    parts: dict[str, list[str]] = {"": []}
    heading = ""
    for line in lines:
        if line in _HEADINGS:
            heading = line
            parts[heading] = []
        else:
            parts[heading].append(line)
    text = {name: textwrap.dedent("\n".join(body)).strip() for name, body in parts.items()}
    return Page(
        what=" ".join(text[""].split()),
        why=text["Why is this bad?"],
        example=_sample(text["Example"]),
        instead=_sample(text["Use instead"]),
        fix_safety=text.get("Fix safety", "There is no fix."),
        source=text["Source"],
    )


def _sample(text: str) -> Sample:
    """A sample, whose flags stand before it: With `--nodes 2`:"""
    import shlex

    match = _WITH.match(text)
    if not match:
        return Sample(text=text)
    return Sample(
        text=text[match.end() :].strip("\n"),
        flags=tuple(shlex.split(match["flags"])),
        yaml=bool(match["yaml"]),
    )
