"""Frozen dataclasses that cost little to define, for the modules that every command imports.

``dataclasses`` brings `inspect` along and compiles six functions a class: a quarter of the time that
``trimtab estimate`` takes.  The classes here share theirs.  They are written the same, a checker of types
sees the library itself, and `dataclasses.replace`, ``fields`` and ``asdict`` take their values like others.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dataclasses import dataclass, field, fields, replace

    __all__ = ["dataclass", "field", "fields", "replace"]
else:
    REQUIRED = object()

    class Field:
        """One field: its name, default, and whether it is shown, compared and hashed."""

        def __init__(self, **said: Any) -> None:
            self.name, self.default = "", said.get("default", REQUIRED)
            self.factory = said.get("default_factory")
            self.repr, self.compare = said.get("repr", True), said.get("compare", True)
            self.hash = self.compare and said.get("hash", True)

    class Shape:
        """The fields of a class, and what all of its values use of them."""

        def __init__(self, kind: type[Value], fields: tuple[Field, ...]) -> None:
            self.fields = fields
            self.defaults = {one.name: one.default for one in fields if one.default is not REQUIRED}
            self.factories = {one.name: one.factory for one in fields if one.factory}
            self.slots = {one.name: getattr(kind, one.name).__set__ for one in fields}
            """By name, what puts a value into its slot though the object is frozen."""
            self.compared = attrgetter(*(one.name for one in fields if one.compare))
            self.hashed = attrgetter(*(one.name for one in fields if one.hash))

    class Library:
        """``__dataclass_fields__``, made when `dataclasses` asks for it."""

        def __get__(self, value: object, kind: type[Value]) -> Any:
            return library_fields(kind)

    @cache
    def library_fields(kind: type[Value]) -> Any:
        """The fields of a class as `dataclasses` knows them."""
        from dataclasses import make_dataclass

        names = [one.name for one in kind.__shape__.fields]
        return make_dataclass(kind.__name__, names).__dataclass_fields__

    class Value:
        """What the classes share."""

        __slots__ = ()
        __dataclass_fields__ = Library()
        __shape__: Shape

        def __init__(self, **given: Any) -> None:
            shape = self.__shape__
            slots = shape.slots
            if len(given) < len(slots):
                given = {**shape.defaults, **given}
                for name, make in shape.factories.items():
                    given.setdefault(name, make())
            if given.keys() != slots.keys():
                wrong = ", ".join(sorted(given.keys() ^ slots.keys()))
                raise TypeError(f"{type(self).__name__}: missing or unknown: {wrong}")
            for name, put in slots.items():
                put(self, given[name])

        def __repr__(self) -> str:
            shown = (one.name for one in self.__shape__.fields if one.repr)
            said = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
            return f"{type(self).__qualname__}({said})"

        def __eq__(self, other: object) -> bool:
            if type(other) is not type(self):
                return NotImplemented
            compared = self.__shape__.compared
            return compared(self) == compared(other)

        def __hash__(self) -> int:
            return hash(self.__shape__.hashed(self))

        def __setattr__(self, name: str, value: object) -> None:
            self.__delattr__(name)

        def __delattr__(self, name: str) -> None:
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot change {name!r} of a {type(self).__name__}")

        def __reduce__(self) -> tuple[Any, ...]:
            return again, (type(self), as_given(self))

    def as_given(value: Value) -> dict[str, Any]:
        """What a value was made of."""
        return {one.name: getattr(value, one.name) for one in value.__shape__.fields}

    def again(kind: type[Value], given: dict[str, Any]) -> Value:
        """A value out of a pickle."""
        return kind(**given)

    field = Field

    def fields(value: Value | type[Value]) -> tuple[Field, ...]:
        """As `dataclasses.fields`."""
        return value.__shape__.fields

    def replace(value: Value, **changes: Any) -> Value:
        """As `dataclasses.replace`."""
        return type(value)(**as_given(value) | changes)

    def dataclass(*, frozen: Literal[True], slots: Literal[True], kw_only: Literal[True]) -> Any:
        """As `dataclasses.dataclass` with these arguments; it knows no others."""
        return made

    def made(plain: type) -> type[Value]:
        """A class with a slot for each annotation of ``plain``, and all else that it has."""
        inherited = getattr(plain, "__shape__", None)
        members, known = dict(vars(plain)), {one.name: one for one in inherited.fields} if inherited else {}
        for name in plain.__annotations__:
            said = members.pop(name, REQUIRED)
            known[name] = one = said if isinstance(said, Field) else Field(default=said)
            one.name = name
        for name in ("__dict__", "__weakref__"):
            members.pop(name, None)
        members |= {"__slots__": tuple(plain.__annotations__), "__qualname__": plain.__qualname__}
        kind = type(plain)(plain.__name__, plain.__bases__ if inherited else (Value,), members)
        kind.__shape__ = Shape(kind, tuple(known.values()))
        return kind
