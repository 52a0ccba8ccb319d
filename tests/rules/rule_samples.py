"""The samples on the rules' pages, checked under the flags that stand beside them."""

from __future__ import annotations

from typing import Any

from trimtab.check import Report, check_sources
from trimtab.judging import Options, make_options
from trimtab.rules.base import Rule, Sample
from trimtab.settings import Settings
from trimtab.source import Source, read_text

COUNTS = ("gpus_per_node", "nodes")
NEWEST = "0.19.8"  # pages are written for the newest release unless they name another


def source_of(sample: Sample) -> Source:
    return read_text(sample.text, file="config.yaml" if sample.yaml else "config.json")


def options_of(sample: Sample, rule: Rule | None = None) -> Options:
    flags: dict[str, Any] = {"deepspeed": NEWEST}
    names = sample.flags[::2]
    for name, value in zip(names, sample.flags[1::2], strict=True):
        key = name.removeprefix("--").replace("-", "_")
        flags[key] = int(value) if key in COUNTS else value
    return make_options(settings=Settings(), select=[rule.code] if rule else (), **flags)


def checked(sample: Sample, rule: Rule | None = None) -> Report:
    return check_sources([source_of(sample)], options_of(sample, rule))
