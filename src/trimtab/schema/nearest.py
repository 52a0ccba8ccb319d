"""Which key a wrong path probably means: under another block, in another tool's words, or misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trimtab.schema.values import Kind, Nearest

if TYPE_CHECKING:
    from trimtab.schema.release import Schema

SIBLING_LIKENESS = 0.75  # difflib ratio: one wrong letter in four
ANYWHERE_LIKENESS = 0.85  # stricter, since the block is wrong too
MOST_PLACES = 3  # a name in more blocks than this, such as "enabled", tells nothing
COMMENT_MARKS = ("_", "$", "#", "//")  # how people write comments as keys
PARAMETER_BLOCKS: dict[str, Kind] = {"optimizer.params": "optimizer", "scheduler.params": "scheduler"}


def nearest(schema: Schema, path: str) -> Nearest | None:
    """The key that ``path`` probably means, or None when nothing comes near.

    A misspelt block is put right first, then the name is looked for in it; a right name in the wrong block
    comes before a likely misspelling elsewhere.
    """
    above, _, name = schema.canonical(path).rpartition(".")
    if name.startswith(COMMENT_MARKS):
        return None
    if above and schema.key(above) is None:
        return _under_mended_block(schema, above, name)
    synonym = schema.synonyms().get(name.lower())
    if synonym is not None:
        return Nearest(path=synonym, reason="synonym")
    return _among_siblings(schema, above, name) or _elsewhere(schema, above, name)


def _under_mended_block(schema: Schema, above: str, name: str) -> Nearest | None:
    block = nearest(schema, above)
    if block is None:
        return _elsewhere(schema, above, name)
    if schema.key(f"{block.path}.{name}") is not None:
        return Nearest(path=schema.canonical(f"{block.path}.{name}"), reason=block.reason)
    found = _among_siblings(schema, block.path, name)
    return found or _elsewhere(schema, above, name)


def _among_siblings(schema: Schema, above: str, name: str) -> Nearest | None:
    names = {key.rpartition(".")[2]: key for key in _children(schema, above)}
    aliases = {alias: path for path in _children(schema, above) for alias in _aliases(schema, path)}
    places = names | aliases
    stands_elsewhere = bool(_exact_places(schema, name))
    close = _closest(name, places, ANYWHERE_LIKENESS if stands_elsewhere else SIBLING_LIKENESS)
    return Nearest(path=places[close], reason="misspelt") if close else None


def _elsewhere(schema: Schema, above: str, name: str) -> Nearest | None:
    places = _exact_places(schema, name)
    if len(places) > MOST_PLACES:
        return None
    if places:
        best, *others = sorted(places, key=lambda path: (-_shared(path, above), path.count(".")))
        return Nearest(path=best, reason="moved", others=tuple(others))
    names: dict[str, str] = {}
    for path in _all_paths(schema):
        names.setdefault(path.rpartition(".")[2], path)
    close = _closest(name, names, ANYWHERE_LIKENESS)
    return Nearest(path=names[close], reason="misspelt") if close else None


def _exact_places(schema: Schema, name: str) -> list[str]:
    return [path for path in _all_paths(schema) if path.rpartition(".")[2] == name]


def _children(schema: Schema, above: str) -> list[str]:
    if above in PARAMETER_BLOCKS:
        return [f"{above}.{name}" for name in schema.parameters(PARAMETER_BLOCKS[above])]
    return list(schema.children(above))


def _all_paths(schema: Schema) -> list[str]:
    return [*schema.paths(), *(path for block in PARAMETER_BLOCKS for path in _children(schema, block))]


def _aliases(schema: Schema, path: str) -> tuple[str, ...]:
    key = schema.key(path)
    return key.aliases if key is not None else ()


def _closest(name: str, options: Iterable[str], likeness: float) -> str | None:
    plain = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=likeness)
    return plain[found[0]] if found else None


def _shared(path: str, above: str) -> int:
    """How many leading parts two paths share."""
    pairs = zip(path.split("."), above.split("."), strict=False)
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count
