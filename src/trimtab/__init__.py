"""Find the right DeepSpeed configuration, prove it, run it, and mend it when it fails.

Everything the command does is here as a function.  Names are imported when they are first used, so that
``import trimtab`` costs next to nothing and never brings torch along.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab import catalogue, errors, moves
    from trimtab.adapt import Adaptation, adapt
    from trimtab.catalogue import load_config
    from trimtab.check import check
    from trimtab.cluster import Cluster, find_gpu
    from trimtab.config import Config
    from trimtab.errors import TrimtabError
    from trimtab.estimate import Estimate, estimate
    from trimtab.findings import Finding
    from trimtab.job import Job
    from trimtab.ladder import Ladder, ladder
    from trimtab.model import Model, find_model
    from trimtab.plan import Plan, plan

__version__ = "0.1.0"

__all__ = [
    "Adaptation",
    "Cluster",
    "Config",
    "Estimate",
    "Finding",
    "Job",
    "Ladder",
    "Model",
    "Plan",
    "TrimtabError",
    "__version__",
    "adapt",
    "catalogue",
    "check",
    "errors",
    "estimate",
    "find_gpu",
    "find_model",
    "ladder",
    "load_config",
    "moves",
    "plan",
]

_MODULES = ("catalogue", "errors", "moves")
_HOMES = {
    "Adaptation": "trimtab.adapt",
    "Cluster": "trimtab.cluster",
    "Config": "trimtab.config",
    "Estimate": "trimtab.estimate",
    "Finding": "trimtab.findings",
    "Job": "trimtab.job",
    "Ladder": "trimtab.ladder",
    "Model": "trimtab.model",
    "Plan": "trimtab.plan",
    "TrimtabError": "trimtab.errors",
    "adapt": "trimtab.adapt",
    "check": "trimtab.check",
    "estimate": "trimtab.estimate",
    "find_gpu": "trimtab.cluster",
    "find_model": "trimtab.model",
    "ladder": "trimtab.ladder",
    "load_config": "trimtab.catalogue",
    "plan": "trimtab.plan",
}


class _Package(ModuleType):
    """This package: a public function stays in its place when the module of its name is imported."""

    def __getattr__(self, name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"trimtab.{name}")
        if name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
            self.__dict__[name] = value
            return value
        raise AttributeError(f"module 'trimtab' has no attribute '{name}'")

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
