"""What ``trimtab explain`` prints of a key, an optimizer or a scheduler."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from trimtab.errors import NotFound
from trimtab.schema.table import known_versions
from trimtab.schema.values import Component, Key, Kind, Section

if TYPE_CHECKING:
    from trimtab.schema.release import Schema

WIDTH = 80
LABEL = 12
ROUND_FROM = 10_000
KINDS: tuple[Kind, ...] = ("optimizer", "scheduler")
SIGNS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
UNKNOWN_TEXT = {
    "ignored": "silently ignored",
    "refused": "refused: the run stops with an error",
    "passed": "passed on as it is",
}


def page(schema: Schema, path: str) -> str:
    """The page of the key at ``path``, or of the optimizer or scheduler of that name.

    Raises:
        NotFound: no release has it; names the nearest key.
    """
    key = schema.key(path) or schema.any_version(path)
    if key is not None:
        return _key_page(schema, key)
    for kind in KINDS:
        component = schema.component(kind, path) or schema.component_any_version(kind, path)
        if component is not None:
            return _component_page(schema, component)
        old = _gone_parameter(schema, kind, path)
        if old is not None:
            return _key_page(schema, old)
    near = schema.nearest(path)
    raise NotFound("configuration key", path, (), cure=f"Did you mean {near.path}?" if near else "")


def _gone_parameter(schema: Schema, kind: Kind, path: str) -> Key | None:
    above, _, name = path.rpartition(".")
    if above != f"{kind}.params":
        return None
    owners = [found for found in _every_component(schema, kind) if name in found.params]
    return owners[0].params[name] if owners else None


def _key_page(schema: Schema, key: Key) -> str:
    lines = [key.path, *_wrapped(_description(schema, key), "  "), ""]
    lines += _field("type", _type_text(key))
    lines += _field("default", _defaults_by_owner(schema, key) or _default_text(schema, key))
    lines += _field("unit", key.unit)
    lines += _field("needs", key.only)
    lines += _field("also named", ", ".join(key.aliases))
    lines += _field("auto", f'"auto" is filled in by {" and ".join(key.auto)}' if key.auto else None)
    section = schema.section(key.path) if "object" in key.types else None
    lines += _field("checked", None if section else _checked_text(key))
    lines += _field("releases", _lifetime(key.since, key.removed))
    lines += _field("refused", f"since DeepSpeed {key.refused_since}" if key.refused_since else None)
    lines += _field("deprecated", _deprecated_text(key))
    lines += _field("taken by", ", ".join(component.name for component in _owners(schema, key)))
    lines += _field("source", f"deepspeed/{key.source} ({_newest(key.removed)})")
    for place in dict.fromkeys(key.by_hand.values()):
        facts = ", ".join(fact for fact, where in key.by_hand.items() if where == place)
        lines += _field("", f"deepspeed/{place} ({facts}, found by reading)")
    lines += _notes(key)
    lines += _section_lines(section) if section else []
    return "\n".join(lines) + "\n"


def _component_page(schema: Schema, component: Component) -> str:
    lines = [f"{component.name} ({component.kind})", *_wrapped(component.description, "  "), ""]
    lines += _field("releases", _lifetime(component.since, component.removed))
    lines += _field("source", f"deepspeed/{component.source} ({_newest(component.removed)})")
    lines += _field("unknown", UNKNOWN_TEXT[component.unknown])
    if component.params:
        lines += ["", f"  {component.kind}.params:"]
    for name, key in component.params.items():
        default = _default_text(schema, key) or ("required" if key.required else "no default")
        lines += _wrapped(f"{name} ({default}) {key.description}", "    ")
    return "\n".join(lines) + "\n"


def _description(schema: Schema, key: Key) -> str:
    if key.description:
        return key.description
    above = schema.any_version(key.parent)
    return f"Part of {key.parent}. {_description(schema, above)}" if above else ""


def _type_text(key: Key) -> str:
    if key.choices:
        text = " or ".join(_value_text(choice) for choice in key.choices)
        text += ", in any case" if key.any_case else ""
        text += " or null" if "null" in key.types else ""
    else:
        text = " or ".join(key.types)
    bounds = [f"{SIGNS[sign]} {_value_text(limit)}" for sign, limit in key.bounds.items()]
    items = f" of {' or '.join(_value_text(item) for item in key.item_choices)}" if key.item_choices else ""
    return ", ".join([text + items, *bounds])


def _default_text(schema: Schema, key: Key) -> str | None:
    if not key.has_default:
        return "required" if key.required else None
    now = _value_text(key.default)
    if len(key.defaults) == 1:
        return now
    eras = [f"{_value_text(era.value)} {_since_text(era.since)}" for era in key.defaults]
    return f"{now} in {schema.version.name} ({', '.join(eras)})"


def _defaults_by_owner(schema: Schema, key: Key) -> str | None:
    """``0.001 (Adam, AdamW), 0.01 (Adagrad)`` for a parameter whose owners differ."""
    owners: dict[str, list[str]] = {}
    for component in _owners(schema, key):
        text = _default_text(schema, component.params[key.name]) or "none"
        owners.setdefault(text, []).append(component.name)
    if len(owners) < 2:
        return None
    return ", ".join(f"{text} ({', '.join(names)})" for text, names in owners.items())


def _checked_text(key: Key) -> str:
    if key.path.startswith(("optimizer.params.", "scheduler.params.")):
        return "given to the constructor as it is"
    if key.validated:
        return "the engine checks its type" + (" and bounds" if key.bounds else "")
    return "the engine takes it as it is; a wrong type fails later or never"


def _lifetime(since: str | None, removed: str | None) -> str:
    return _since_text(since) + (f", removed in {removed}" if removed else "")


def _since_text(since: str | None) -> str:
    return f"since {since}" if since else f"since {known_versions()[0]} or earlier"


def _newest(removed: str | None) -> str:
    versions = known_versions()
    return f"DeepSpeed {versions[versions.index(removed) - 1] if removed else versions[-1]}"


def _deprecated_text(key: Key) -> str | None:
    if not key.deprecated:
        return None
    return f"use {key.replacement}" if key.replacement else "yes"


def _owners(schema: Schema, key: Key) -> list[Component]:
    """The optimizers or schedulers that take a parameter."""
    return [
        component
        for kind in KINDS
        if key.parent == f"{kind}.params"
        for component in _every_component(schema, kind)
        if key.name in component.params
    ]


def _every_component(schema: Schema, kind: Kind) -> list[Component]:
    """The components of this release, then those that are gone or still to come."""
    now = list(schema.components(kind))
    names = {component.name for component in now}
    return now + [other for other in schema.components_any_version(kind) if other.name not in names]


def _notes(key: Key) -> list[str]:
    lines: list[str] = []
    for note in key.notes:
        lines += ["", *_wrapped(f"{note.text}. [deepspeed/{note.source}]", "  ")]
    return lines


def _section_lines(section: Section) -> list[str]:
    lines = ["", f"  An unknown key in this block is {UNKNOWN_TEXT[section.unknown]}."]
    if section.keys:
        lines += ["  Keys:"]
    for key in section.keys:
        lines += _wrapped(f"{key.name}: {key.description}", "    ")
    return lines


def _field(label: str, text: str | None) -> list[str]:
    if not text:
        return []
    head = f"  {label:<{LABEL}}"
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _value_text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= ROUND_FROM:
        return f"{value:,}"
    return json.dumps(value)
