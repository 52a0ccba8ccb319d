"""The pages of rules: for a terminal, as JSON, and as the document ``docs/rules.md``."""

from __future__ import annotations

import textwrap
from typing import Any

from trimtab.report.paint import DEFAULT_WIDTH
from trimtab.rules.base import Rule, Sample
from trimtab.rules.registry import FAMILIES, rules
from trimtab.schema import Key

REFUSED = {
    "reading": "DeepSpeed stops as it reads the file.",
    "building": "DeepSpeed stops as it builds the engine.",
    "running": "The run stops later.",
}


def text(rule: Rule) -> str:
    """A rule's page for a terminal."""
    page = rule.page
    parts = [
        f"{rule.code}  {rule.name}  ({rule.severity})",
        _filled(_what(rule)),
        f"Why is this bad?\n{_indented(page.why)}",
        f"Example{_with(page.example)}\n{_code(page.example)}",
        f"Use instead{_with(page.instead)}\n{_code(page.instead)}",
        f"Fix safety\n{_indented(page.fix_safety)}",
        f"Source\n{_indented(page.source)}",
    ]
    return "\n\n".join(parts) + "\n"


def listing(family: str | None = None) -> str:
    """All rules, one a line, under their families."""
    lines: list[str] = []
    for letters, title in FAMILIES.items():
        if family in (None, letters):
            lines += ["", f"{letters}  {title}"] if lines else [f"{letters}  {title}"]
            lines += [
                f"  {rule.code}  {rule.severity:<7}  {rule.name}"
                for rule in rules().values()
                if rule.family == letters
            ]
    return "\n".join([*lines, "", "`trimtab explain CODE` tells more."])


def document(rule: Rule) -> dict[str, Any]:
    """A rule's page as JSON."""
    page = rule.page
    return {
        "code": rule.code,
        "name": rule.name,
        "family": rule.family,
        "severity": rule.severity,
        "refused": rule.refused,
        "what": page.what,
        "why": " ".join(page.why.split()),
        "example": {"flags": list(page.example.flags), "text": page.example.text},
        "use_instead": {"flags": list(page.instead.flags), "text": page.instead.text},
        "fix_safety": " ".join(page.fix_safety.split()),
        "source": " ".join(page.source.split()),
    }


def key_document(key: Key) -> dict[str, Any]:
    """What is known of a key, as JSON."""
    return {
        "path": key.path,
        "description": key.description,
        "types": list(key.types),
        "default": key.default,
        "choices": list(key.choices),
        "bounds": dict(key.bounds),
        "unit": key.unit,
        "aliases": list(key.aliases),
        "deprecated": key.deprecated,
        "replacement": key.replacement,
        "since": key.since,
        "removed": key.removed,
        "auto": list(key.auto),
        "notes": [note.text for note in key.notes],
        "source": key.source,
    }


def markdown() -> str:
    """All pages as one document: ``docs/rules.md``."""
    lines = [
        "# Rules",
        "",
        "Every rule of `trimtab check`. A name reads as “allow NAME”. Made from the rules' own pages by",
        "`scripts/make_reference.py`; a test holds that it is fresh, and that each rule finds its "
        "example and",
        "passes what to use instead.",
        "",
    ]
    for letters, title in FAMILIES.items():
        lines += [f"- [{letters}: {title}](#{letters.lower()})"]
    for letters, title in FAMILIES.items():
        lines += ["", f'<a id="{letters.lower()}"></a>', "", f"## {letters}: {title}"]
        for rule in rules().values():
            if rule.family == letters:
                lines += ["", *_markdown_page(rule)]
    return "\n".join(lines) + "\n"


def _markdown_page(rule: Rule) -> list[str]:
    page = rule.page
    fence = {True: "yaml", False: "json"}
    return [
        f"### {rule.code} {rule.name}",
        "",
        f"*{rule.severity}* · {_what(rule)}",
        "",
        f"**Why is this bad?** {' '.join(page.why.split())}",
        "",
        f"Example{_with(page.example)}:",
        "",
        f"```{fence[page.example.yaml]}",
        _shown(page.example),
        "```",
        "",
        f"Use instead{_with(page.instead)}:",
        "",
        f"```{fence[page.instead.yaml]}",
        _shown(page.instead),
        "```",
        "",
        f"**Fix safety.** {' '.join(page.fix_safety.split())}",
        "",
        f"Source: {' '.join(page.source.split())}",
    ]


def _what(rule: Rule) -> str:
    refused = REFUSED.get(rule.refused or "", "")
    return f"{rule.page.what} {refused}".strip()


def _with(sample: Sample) -> str:
    return f" with `{' '.join(sample.flags)}`" if sample.flags else ""


def _shown(sample: Sample) -> str:
    return sample.text.replace("\ufeff", "\\ufeff")


def _code(sample: Sample) -> str:
    return textwrap.indent(_shown(sample), "    ")


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, DEFAULT_WIDTH, break_long_words=False, break_on_hyphens=False)


def _indented(paragraph: str) -> str:
    return textwrap.fill(
        " ".join(paragraph.split()), DEFAULT_WIDTH, initial_indent="    ", subsequent_indent="    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
