"""Every key of a DeepSpeed configuration, as each release of DeepSpeed reads it.

The table behind this is ``data/keys.json``, made from DeepSpeed's published sources by
``scripts/make_keys.py``.  Neither torch nor DeepSpeed is imported.

>>> from trimtab import schema
>>> schema.load("0.19.8").key("gradient_clipping").default
1.0
>>> schema.load("0.18.9").key("gradient_clipping").default
0.0
"""

from trimtab.schema.release import Schema, load
from trimtab.schema.table import known_versions, resolve_version
from trimtab.schema.values import (
    Behaviour,
    Component,
    Default,
    Key,
    Kind,
    Nearest,
    Note,
    Policy,
    Section,
    Version,
)

__all__ = [
    "Behaviour",
    "Component",
    "Default",
    "Key",
    "Kind",
    "Nearest",
    "Note",
    "Policy",
    "Schema",
    "Section",
    "Version",
    "known_versions",
    "load",
    "resolve_version",
]
