"""What can go wrong, as one small tree.

    TrimtabError                 exit 2: the tool could not do its work
    ├── UsageError               the request contradicts itself, or lacks something
    ├── NotFound                 a name nobody knows; carries the nearest ones
    ├── UnreadableFile           a file that is missing, broken, or not what it should be
    │   └── UnknownArchitecture  a config.json of a model type that the arithmetic does not know
    ├── RefusedConfig            a configuration that DeepSpeed itself would refuse
    ├── MissingExtra             a package that an extra installs
    ├── Unsupported              this machine or these versions cannot do it
    │   ├── Uncounted            what the arithmetic does not count, and a rehearsal does
    │   └── EngineMoved          torch or DeepSpeed no longer has a part that the rehearsal stands on
    ├── DataError                training data that is empty, unreadable or not text
    └── RunFailed                exit 1: a training run that started and failed

A finding about a configuration is a value (`trimtab.findings.Finding`), never an exception: exceptions
are for "could not do it".  Every message says what, where, why and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar


class TrimtabError(Exception):
    """The tool could not do its work; the message is the whole text that a user sees."""

    exit_code: ClassVar[int] = 2


class UsageError(TrimtabError):
    """The request contradicts itself, or lacks something."""


class NotFound(TrimtabError):
    """A name that is in no table: ``kind`` says of what, ``nearest`` what may have been meant."""

    def __init__(self, kind: str, name: str, options: Iterable[str], *, cure: str = "") -> None:
        self.kind, self.name = kind, name
        self.nearest = tuple(nearest(name, options))
        hint = f" Did you mean {' or '.join(self.nearest)}?" if self.nearest else ""
        super().__init__(f"unknown {kind} '{name}'.{hint}{' ' + cure if cure else ''}")


class UnreadableFile(TrimtabError):
    """A file that is missing, broken, or not what it should be."""


class UnknownArchitecture(UnreadableFile):
    """A ``config.json`` of a model type that the arithmetic does not know."""


class RefusedConfig(TrimtabError):
    """A configuration that DeepSpeed itself would refuse."""


class MissingExtra(TrimtabError):
    """A package that is not installed; names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'trimtab[{extra}]'")


def need_packages(purpose: str) -> None:
    """Raises MissingExtra unless torch, DeepSpeed and transformers are installed; imports none of them."""
    from importlib.util import find_spec  # only what runs the engine needs it

    for package in ("torch", "deepspeed", "transformers"):
        if find_spec(package) is None:
            raise MissingExtra(package, "train", purpose)


class Unsupported(TrimtabError):
    """This machine, or these versions, cannot do what was asked."""


class Uncounted(Unsupported):
    """What the arithmetic does not count; a rehearsal does."""


class EngineMoved(Unsupported):
    """torch or DeepSpeed no longer has a part that the rehearsal stands on."""


class DataError(TrimtabError):
    """Training data that is empty, unreadable or not text."""


class RunFailed(TrimtabError):
    """A training run that started and failed."""

    exit_code: ClassVar[int] = 1


def nearest(name: str, options: Iterable[str], *, count: int = 3) -> Sequence[str]:
    """The ``count`` options that look most like ``name``, best first; none if nothing comes near.

    >>> nearest("a100-80", ["a100-80gb", "a100-40gb", "h200"])[0]
    'a100-80gb'
    >>> nearest("llama7b", ["llama_70b_multi_node", "llama_7b_single_node"])[0]
    'llama_7b_single_node'
    """
    plain = {_plain(option): option for option in options}
    if not plain:
        return ()
    import difflib  # only mistakes need it

    wanted = _plain(name)
    close = difflib.get_close_matches(wanted, plain, n=count, cutoff=0.55)
    longer = [key for key in plain if len(wanted) > 2 and wanted in key and key not in close]
    return [plain[key] for key in (*close, *longer)[:count]]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())
