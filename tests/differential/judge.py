"""What DeepSpeed's own configuration class says of a configuration, and what the check says."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from typing import Any

from trimtab.check import check_sources
from trimtab.findings import Finding
from trimtab.judging import Options
from trimtab.rules.subject import World
from trimtab.source import read_dict


class FakeDist:
    """Stands in for DeepSpeed's communication in its configuration module: rank 0 of some."""

    def __init__(self) -> None:
        self.world = 1

    def get_rank(self) -> int:
        return 0

    def get_world_size(self, group: Any = None) -> int:
        return self.world


class Engine:
    """DeepSpeed's configuration class in worlds of any size, in this one process."""

    def __init__(self) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed.runtime.config as module

        logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)
        self.module, self.dist, self.real = module, FakeDist(), module.dist
        module.dist = self.dist

    def close(self) -> None:
        """Gives the module its own communication back."""
        self.module.dist = self.real

    def refusal(self, config: dict[str, Any], world: int) -> str | None:
        """The error with which DeepSpeed refuses ``config``; None where it takes it."""
        self.dist.world = world
        try:
            self.module.DeepSpeedConfig(copy.deepcopy(config))
        except Exception as error:  # noqa: BLE001 - whatever the engine raises is its verdict
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return None


def refusing(config: dict[str, Any], world: int, options: Options) -> tuple[Finding, ...]:
    """The errors of the check that say that DeepSpeed refuses ``config`` as it reads it."""
    here = dataclasses.replace(options, world=World(gpus_per_node=world, nodes=1))
    findings = check_sources([read_dict(config)], here).findings
    return tuple(
        finding for finding in findings if finding.severity == "error" and finding.refused == "reading"
    )
