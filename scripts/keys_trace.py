"""Which configuration keys a release reads: its parsing code, followed by hand over the syntax tree.

The user's dictionary is an abstract value, `Block`, that knows only its own path.  Following the statements
of ``DeepSpeedConfig`` with a `Block` for the configuration shows every look-up: ``block["key"]``,
``block.get("key", default)``, ``"key" in block``, and every pydantic model that a block is unpacked into.
Both arms of each branch are followed, so a key that is read under a condition is found too.
"""

from __future__ import annotations

import ast
import operator
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from keys_models import Fields, read_fields
from keys_sources import Module, Release

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _: "UNKNOWN"})()
DEEPEST_CALL = 25
LOOKUPS = {"get_scalar_param", "get_list_param", "get_dict_param"}
COPIES = {"copy", "deepcopy", "dict", "list"}
SAFE_CALLS = {
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "pp_int": int,
}
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow, ast.LShift: operator.lshift,
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """The user's dictionary at one path ("" is the whole file)."""

    path: str

    def child(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


@dataclass
class Instance:
    """An object of one of the release's plain classes, with the attributes seen so far."""

    module: Module
    node: ast.ClassDef
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Callable:
    """A function or class of the release, perhaps bound to an object."""

    module: Module
    node: ast.FunctionDef | ast.ClassDef
    bound: Any = None


@dataclass
class Frame:
    module: Module
    names: dict[str, Any]
    depth: int
    returned: Any = UNKNOWN


@dataclass
class Trace:
    """What was read: keys, keys whose mere presence raises, and what blocks do with strangers."""

    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)


class Tracer:
    def __init__(self, release: Release) -> None:
        self.release = release
        self.trace = Trace(sections={"": "ignored"})

    def run(self) -> Trace:
        """Follow ``DeepSpeedConfig`` from the parsed file to the end of its checks."""
        module = self.release.module("deepspeed.runtime.config")
        assert module is not None
        node = module.defined["DeepSpeedConfig"]
        assert isinstance(node, ast.ClassDef)
        config = Instance(module, node, {"_param_dict": Block("")})
        self.call(Callable(module, method(node, "__init__"), config), [Block("")], {}, 0)  # type: ignore[arg-type]
        return self.trace

    # ---- recording

    def record(self, block: Block, key: Any, module: Module, node: ast.AST, **attributes: Any) -> None:
        if not isinstance(key, str):
            return
        entry = self.trace.keys.setdefault(block.child(key), {})
        entry.setdefault("source", f"{module.path}:{node.lineno}")  # type: ignore[attr-defined]
        for name, value in attributes.items():
            if value is not UNKNOWN:
                entry.setdefault(name, value)
        self.trace.sections.setdefault(block.path, "ignored")

    def bind_model(self, fields: Fields, block: Block) -> None:
        """Record a pydantic model's fields as the keys of ``block``."""
        self.trace.sections[block.path] = fields.unknown
        if block.path in self.trace.keys:
            self.trace.keys[block.path]["source"] = fields.source
        for name, entry in fields.entries.items():
            attributes = dict(entry.attributes)
            self.trace.keys[block.child(name)] = {"source": entry.source, "typed": True, **attributes}
            if entry.model is not None:
                self.bind_model(entry.model, Block(block.child(name)))

    # ---- statements

    def follow(self, body: list[ast.stmt], frame: Frame) -> None:
        for statement in body:
            self.statement(statement, frame)

    def statement(self, node: ast.stmt, frame: Frame) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value, frame)
            for target in node.targets:
                self.assign(target, value, frame)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.assign(node.target, self.value(node.value, frame), frame)
        elif isinstance(node, ast.Return):
            value = self.value(node.value, frame) if node.value else None
            if frame.returned is UNKNOWN or isinstance(value, Block):
                frame.returned = value
        elif isinstance(node, ast.If):
            self.branch(node, frame)
        elif isinstance(node, ast.For):
            self.loop(node, frame)
        elif isinstance(node, ast.Try):
            self.follow([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse], frame)
        elif isinstance(node, ast.With):
            self.follow(node.body, frame)
        elif isinstance(node, ast.ImportFrom):
            for name, (source, original) in frame.module.import_targets(node).items():
                frame.names[name] = self.imported(source, original or name)
        elif isinstance(node, (ast.Expr, ast.Assert)):
            self.value(node.value if isinstance(node, ast.Expr) else node.test, frame)

    def assign(self, target: ast.expr, value: Any, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            if not isinstance(frame.names.get(target.id), Block) or isinstance(value, Block):
                frame.names[target.id] = value
        elif isinstance(target, ast.Attribute):
            holder = self.value(target.value, frame)
            if isinstance(holder, Instance) and not isinstance(holder.attributes.get(target.attr), Block):
                holder.attributes[target.attr] = value
        elif isinstance(target, ast.Subscript):
            holder = self.value(target.value, frame)
            key = self.value(target.slice, frame)
            if isinstance(holder, dict) and isinstance(key, str):
                holder[key] = value

    def branch(self, node: ast.If, frame: Frame) -> None:
        test = node.test
        if (
            isinstance(node.body[0], ast.Raise)
            and isinstance(test, ast.Compare)
            and isinstance(test.ops[0], ast.In)
        ):
            key, block = self.value(test.left, frame), self.value(test.comparators[0], frame)
            if isinstance(block, Block) and isinstance(key, str):
                self.trace.refused[block.child(key)] = {"source": f"{frame.module.path}:{node.lineno}"}
                return
        self.value(test, frame)
        self.follow([*node.body, *node.orelse], frame)

    def loop(self, node: ast.For, frame: Frame) -> None:
        if self.merges_block(node, frame):
            return
        items = self.value(node.iter, frame)
        if isinstance(items, dict):
            items = list(items)
        if not isinstance(items, (list, tuple)):
            self.follow(node.body, frame)
            return
        for item in items:
            if isinstance(node.target, ast.Tuple) and isinstance(item, (tuple, list)):
                for target, part in zip(node.target.elts, item, strict=False):
                    self.assign(target, part, frame)
            else:
                self.assign(node.target, item, frame)
            self.follow(node.body, frame)

    def merges_block(self, node: ast.For, frame: Frame) -> bool:
        """``for key, value in block.items(): defaults[key] = value``: every default is a key of the block."""
        block = self.value(node.iter, frame)
        step = node.body[0]
        if not (isinstance(block, Block) and isinstance(step, ast.Assign)):
            return False
        target = step.targets[0]
        holder = self.value(target.value, frame) if isinstance(target, ast.Subscript) else None
        for key, default in holder.items() if isinstance(holder, dict) else ():
            self.record(block, key, frame.module, node, default=default)
        return isinstance(holder, dict)

    # ---- expressions

    def value(self, node: ast.expr | None, frame: Frame) -> Any:
        """The abstract value of an expression, recording each look-up on the way."""
        if node is None:
            return None
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is not None:
            return handler(node, frame)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child, frame)
        return UNKNOWN

    def _constant(self, node: ast.Constant, frame: Frame) -> Any:
        return node.value

    def _name(self, node: ast.Name, frame: Frame) -> Any:
        if node.id in frame.names:
            return frame.names[node.id]
        found = self.release.find(frame.module, node.id)
        return self.definition(*found) if found else UNKNOWN

    def imported(self, source: str, name: str) -> Any:
        module = self.release.module(source)
        found = self.release.find(module, name) if module else None
        return self.definition(*found) if found else UNKNOWN

    def definition(self, module: Module, node: ast.AST) -> Any:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return Callable(module, node)
        assert isinstance(node, ast.expr)
        return self.value(node, Frame(module, {}, 0))

    def _attribute(self, node: ast.Attribute, frame: Frame) -> Any:
        text = ast.unparse(node)
        if text == "sys.maxsize":
            return sys.maxsize
        if text.startswith("torch."):
            return text
        holder = self.value(node.value, frame)
        if isinstance(holder, Instance):
            if node.attr in holder.attributes:
                return holder.attributes[node.attr]
            found = method(holder.node, node.attr)
            return Callable(holder.module, found, holder) if found else UNKNOWN
        if isinstance(holder, Callable) and isinstance(holder.node, ast.ClassDef):
            return self.member(holder, node.attr)
        return holder if isinstance(holder, Block) and node.attr in ("keys", "items", "values") else UNKNOWN

    def member(self, holder: Callable, name: str) -> Any:
        for statement in holder.node.body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                return self.value(statement.value, Frame(holder.module, {}, 0))
        return UNKNOWN

    def _subscript(self, node: ast.Subscript, frame: Frame) -> Any:
        holder, key = self.value(node.value, frame), self.value(node.slice, frame)
        if isinstance(holder, Block) and isinstance(key, str):
            self.record(holder, key, frame.module, node)
            return Block(holder.child(key))
        if isinstance(holder, dict) and isinstance(key, str):
            return holder.get(key, UNKNOWN)
        return UNKNOWN

    def _compare(self, node: ast.Compare, frame: Frame) -> Any:
        left, right = self.value(node.left, frame), self.value(node.comparators[0], frame)
        if isinstance(node.ops[0], (ast.In, ast.NotIn)) and isinstance(right, Block):
            self.record(right, left, frame.module, node)
        return UNKNOWN

    def _dict(self, node: ast.Dict, frame: Frame) -> Any:
        pairs = zip(node.keys, node.values, strict=True)
        evaluated = {self.value(k, frame): self.value(v, frame) for k, v in pairs if k is not None}
        return {k: v for k, v in evaluated.items() if isinstance(k, (str, int, float))}

    def _list(self, node: ast.List, frame: Frame) -> Any:
        return [self.value(item, frame) for item in node.elts]

    def _tuple(self, node: ast.Tuple, frame: Frame) -> Any:
        return tuple(self.value(item, frame) for item in node.elts)

    def _set(self, node: ast.Set, frame: Frame) -> Any:
        return [self.value(item, frame) for item in node.elts]

    def _dictcomp(self, node: ast.DictComp, frame: Frame) -> Any:
        items = self.value(node.generators[0].iter, frame)
        if not isinstance(items, (list, tuple)):
            return UNKNOWN
        made = {}
        for item in items:
            inner = Frame(frame.module, dict(frame.names), frame.depth)
            self.assign(node.generators[0].target, item, inner)
            made[self.value(node.key, inner)] = self.value(node.value, inner)
        return made

    def _ifexp(self, node: ast.IfExp, frame: Frame) -> Any:
        self.value(node.test, frame)
        arms = [self.value(node.body, frame), self.value(node.orelse, frame)]
        return next((arm for arm in arms if isinstance(arm, Block)), arms[0])

    def _boolop(self, node: ast.BoolOp, frame: Frame) -> Any:
        parts = [self.value(part, frame) for part in node.values]
        return next((part for part in parts if isinstance(part, Block)), UNKNOWN)

    def _binop(self, node: ast.BinOp, frame: Frame) -> Any:
        left, right = self.value(node.left, frame), self.value(node.right, frame)
        compute = OPERATORS.get(type(node.op))
        numeric = all(isinstance(side, (int, float)) for side in (left, right))
        return compute(left, right) if compute and numeric else UNKNOWN

    def _unaryop(self, node: ast.UnaryOp, frame: Frame) -> Any:
        operand = self.value(node.operand, frame)
        return -operand if isinstance(node.op, ast.USub) and isinstance(operand, (int, float)) else UNKNOWN

    def _lambda(self, node: ast.Lambda, frame: Frame) -> Any:
        return UNKNOWN

    # ---- calls

    def _call(self, node: ast.Call, frame: Frame) -> Any:
        arguments = [self.value(argument, frame) for argument in node.args]
        keywords = {keyword.arg: self.value(keyword.value, frame) for keyword in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if isinstance(node.func, ast.Attribute) and name in ("get", "pop", "setdefault"):
            holder = self.value(node.func.value, frame)
            if isinstance(holder, Block) and arguments:
                return self.look_up(holder, arguments, frame.module, node)
        if name in LOOKUPS and isinstance(arguments[0], Block):
            return self.look_up(arguments[0], arguments[1:], frame.module, node)
        if ast.unparse(node.func) == "os.path.join" and all(isinstance(part, str) for part in arguments):
            return os.path.join(*arguments)
        if name in COPIES and arguments and isinstance(arguments[0], (Block, dict)):
            return arguments[0]
        if name in SAFE_CALLS and arguments and isinstance(arguments[0], (int, float, str, list, tuple)):
            return SAFE_CALLS[name](arguments[0])  # type: ignore[operator]
        target = self.value(node.func, frame)
        if isinstance(target, Block):
            return target  # block.keys(), block.items()
        if isinstance(target, dict) or (isinstance(node.func, ast.Attribute) and name == "items"):
            holder = self.value(node.func.value, frame) if isinstance(node.func, ast.Attribute) else target
            return list(holder.items()) if isinstance(holder, dict) else UNKNOWN
        return (
            self.call(target, arguments, keywords, frame.depth) if isinstance(target, Callable) else UNKNOWN
        )

    def look_up(self, block: Block, arguments: list[Any], module: Module, node: ast.AST) -> Any:
        key = arguments[0]
        if not isinstance(key, str):
            return UNKNOWN
        default = arguments[1] if len(arguments) > 1 else None
        plain = default if default != {} and not isinstance(default, (Block, Instance, Callable)) else UNKNOWN
        self.record(block, key, module, node, default=plain)
        return Block(block.child(key))

    def call(
        self, target: Callable, arguments: list[Any], keywords: dict[str | None, Any], depth: int
    ) -> Any:
        """Follow a call when the user's dictionary goes into it."""
        node = target.node
        if depth > DEEPEST_CALL:
            raise RecursionError(f"{target.module.path}:{node.lineno} is called too deeply")
        if isinstance(node, ast.ClassDef):
            return self.construct(target, arguments, keywords, depth)
        passed = [*arguments, *keywords.values()]
        holds_block = isinstance(target.bound, Instance)
        if not (holds_block or any(isinstance(value, (Block, Instance)) for value in passed)):
            return UNKNOWN
        frame = Frame(target.module, self.bind_arguments(target, arguments, keywords), depth + 1)
        self.follow(node.body, frame)
        return frame.returned

    def bind_arguments(
        self, target: Callable, arguments: list[Any], keywords: dict[str | None, Any]
    ) -> dict[str, Any]:
        assert isinstance(target.node, ast.FunctionDef)
        signature = target.node.args
        names = [argument.arg for argument in signature.args]
        outer = Frame(target.module, {}, 0)
        defaults = [self.value(default, outer) for default in signature.defaults]
        bound = dict.fromkeys(names, UNKNOWN) | dict(
            zip(names[len(names) - len(defaults) :], defaults, strict=True)
        )
        given = [target.bound, *arguments] if target.bound is not None else arguments
        bound.update(zip(names, given, strict=False))
        bound.update({name: value for name, value in keywords.items() if name in bound})
        return bound  # type: ignore[return-value]

    def construct(
        self, target: Callable, arguments: list[Any], keywords: dict[str | None, Any], depth: int
    ) -> Any:
        assert isinstance(target.node, ast.ClassDef)
        fields = read_fields(self, target.module, target.node)
        unpacked = keywords.get(None)
        if fields is not None:
            if isinstance(unpacked, Block):
                self.bind_model(fields, unpacked)
            elif isinstance(unpacked, dict):
                self.bind_parts(fields, unpacked)
            return UNKNOWN
        made = Instance(target.module, target.node)
        initialiser = method(target.node, "__init__")
        if initialiser and any(isinstance(value, Block) for value in [*arguments, *keywords.values()]):
            self.call(Callable(target.module, initialiser, made), arguments, keywords, depth + 1)
        return made

    def bind_parts(self, fields: Fields, parts: dict[Any, Any]) -> None:
        """A model built from several blocks of the file, as the monitors are."""
        for name, block in parts.items():
            entry = fields.entries.get(name)
            if isinstance(block, Block) and entry is not None and entry.model is not None:
                self.bind_model(entry.model, block)


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name), None)
