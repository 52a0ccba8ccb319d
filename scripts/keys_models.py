"""The fields of DeepSpeed's pydantic models, as their class statements spell them."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keys_sources import Module

if TYPE_CHECKING:
    from keys_trace import Tracer

SIMPLE_TYPES = {
    "bool": "boolean", "int": "integer", "float": "number", "None": "null",
    "str": "string", "Path": "string", "dtype": "string",
    "list": "array", "List": "array", "tuple": "array", "Tuple": "array", "dict": "object", "Dict": "object",
}  # fmt: skip
BOUNDS = ("ge", "gt", "le", "lt")
MODEL_ROOTS = {"DeepSpeedConfigModel", "BaseModel"}
UNKNOWN_KEYS = {"forbid": "refused", "ignore": "ignored", "allow": "passed"}


@dataclass
class FieldEntry:
    """One field: what is known of its value, where it stands, and the model of a nested block."""

    attributes: dict[str, Any]
    source: str
    model: Fields | None = None


@dataclass
class Fields:
    """A model's fields by the name a user writes, and what it does with other names."""

    entries: dict[str, FieldEntry] = field(default_factory=dict)
    unknown: str = "refused"
    source: str = ""


def read_fields(tracer: Tracer, module: Module, node: ast.ClassDef) -> Fields | None:
    """The fields of a pydantic model, those of its bases first; None for any other class."""
    if node.name in MODEL_ROOTS:
        return Fields(unknown=unknown_policy(node) or "ignored")
    inherited = None
    for base in node.bases:
        name = ast.unparse(base)
        found = tracer.release.find(module, name)
        if found and isinstance(found[1], ast.ClassDef):
            inherited = read_fields(tracer, found[0], found[1])
        elif name == "BaseModel":
            inherited = Fields(unknown="ignored")
    if inherited is None:
        return None
    inherited.unknown = unknown_policy(node) or inherited.unknown
    inherited.source = f"{module.path}:{node.lineno}"
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name, entry = read_field(tracer, module, statement)
            inherited.entries.pop(statement.target.id, None)
            inherited.entries[name] = entry
    return inherited


def unknown_policy(node: ast.ClassDef) -> str | None:
    """What ``extra=`` says in ``model_config`` or in the older inner ``class Config``."""
    for statement in ast.walk(node):
        keyword = isinstance(statement, ast.keyword) and statement.arg == "extra"
        assigned = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "extra"
        if not (keyword or assigned):
            continue
        value = statement.value  # type: ignore[attr-defined]
        text = value.value if isinstance(value, ast.Constant) else ast.unparse(value).rpartition(".")[2]
        return UNKNOWN_KEYS.get(str(text))
    return None


def read_field(tracer: Tracer, module: Module, node: ast.AnnAssign) -> tuple[str, FieldEntry]:
    assert isinstance(node.target, ast.Name)
    attributes: dict[str, Any] = {}
    model = describe_type(tracer, module, node.annotation, attributes)
    entry = FieldEntry(attributes, f"{module.path}:{node.lineno}", model)
    name = node.target.id
    value = node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        options = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
        default = value.args[0] if value.args else options.get("default")
        read_options(tracer, module, options, attributes)
        if "default_factory" in options and model is None:
            take_default(tracer, module, made_by(options["default_factory"]), attributes)
    else:
        options, default = {}, value
    if model is None and default is not None:
        take_default(tracer, module, default, attributes)
    if "alias" in options:
        alias = constant(tracer, module, options["alias"])
        attributes["aliases"] = [name]
        name = alias
    return name, entry


def read_options(
    tracer: Tracer, module: Module, options: dict[str, ast.expr], attributes: dict[str, Any]
) -> None:
    """Bounds and deprecation, from ``Field(...)`` itself or from its ``json_schema_extra``."""
    for bound in BOUNDS:
        if bound in options:
            attributes[bound] = constant(tracer, module, options[bound])
    extra = options.get("json_schema_extra")
    marks = dict(options)
    if isinstance(extra, ast.Dict):
        marks |= {key.value: value for key, value in zip(extra.keys, extra.values, strict=True)}  # type: ignore[union-attr,misc]
    if "deprecated" in marks and constant(tracer, module, marks["deprecated"]) is True:
        attributes["deprecated"] = True
        if "new_param" in marks:
            attributes["replacement"] = constant(tracer, module, marks["new_param"])


def describe_type(
    tracer: Tracer, module: Module, node: ast.expr, attributes: dict[str, Any]
) -> Fields | None:
    """Fill ``types`` and ``choices`` from an annotation; the model, when it names one."""
    types: list[str] = attributes.setdefault("types", [])
    if isinstance(node, ast.Constant):
        add(types, "null" if node.value is None else "any")
        return None
    if isinstance(node, ast.Subscript):
        return describe_generic(tracer, module, node, attributes)
    name = ast.unparse(node).rpartition(".")[2]
    if name in SIMPLE_TYPES:
        add(types, SIMPLE_TYPES[name])
        return None
    found = tracer.release.find(module, name)
    if found is None:
        add(types, "any")
        return None
    home, target = found
    if not isinstance(target, ast.ClassDef):
        return describe_type(tracer, home, target, attributes) if isinstance(target, ast.expr) else None
    fields = read_fields(tracer, home, target)
    if fields is not None:
        add(types, "object")
        return fields
    members = enum_members(tracer, home, target)
    attributes["choices"] = attributes.get("choices", []) + members
    for member in members:
        add(types, "integer" if isinstance(member, int) else "string")
    return None


def describe_generic(
    tracer: Tracer, module: Module, node: ast.Subscript, attributes: dict[str, Any]
) -> Fields | None:
    types = attributes["types"]
    head = ast.unparse(node.value).rpartition(".")[2]
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head == "Literal":
        choices = [item.value for item in inner if isinstance(item, ast.Constant)]
        attributes["choices"] = attributes.get("choices", []) + choices
        for choice in choices:
            add(types, "integer" if isinstance(choice, int) else "string")
        return None
    if head in ("Optional", "Union"):
        models = [describe_type(tracer, module, item, attributes) for item in inner]
        if head == "Optional":
            add(types, "null")
        return next((model for model in models if model is not None), None)
    add(types, SIMPLE_TYPES.get(head, "any"))
    if SIMPLE_TYPES.get(head) == "array":
        items: dict[str, Any] = {}
        describe_type(tracer, module, inner[0], items)
        if items.get("choices"):
            attributes["item_choices"] = items["choices"]
    return None


def enum_members(tracer: Tracer, module: Module, node: ast.ClassDef) -> list[Any]:
    """An enum's values in order, each once."""
    members: list[Any] = []
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            value = constant(tracer, module, statement.value)
            if isinstance(value, tuple):  # a torch dtype first, then the texts that name it
                members += [text for text in value[1:] if text not in members]
            elif value not in members and isinstance(value, (str, int)):
                members.append(value)
    return members


def take_default(tracer: Tracer, module: Module, node: ast.expr | None, attributes: dict[str, Any]) -> None:
    value = constant(tracer, module, node)
    if value is None or isinstance(value, (bool, int, float, str, list, dict)):
        attributes["default"] = value
    elif isinstance(value, tuple):
        attributes["default"] = list(value)


def made_by(factory: ast.expr) -> ast.expr | None:
    """The value that a ``default_factory`` returns, where that can be read."""
    return factory.body if isinstance(factory, ast.Lambda) else None


def constant(tracer: Tracer, module: Module, node: ast.expr | None) -> Any:
    from keys_trace import Frame

    return tracer.value(node, Frame(module, {}, 0))


def add(types: list[str], name: str) -> None:
    if name not in types:
        types.append(name)
