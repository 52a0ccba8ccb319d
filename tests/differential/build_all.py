"""Prints, as one line of JSON, what ``deepspeed.initialize`` and the check say of some configurations."""

from __future__ import annotations

import json
import sys

from engines import WORLD, Builder, configurations

from trimtab.check import check_sources
from trimtab.judging import make_options
from trimtab.settings import Settings
from trimtab.source import read_dict


def main(count: int, seed: int) -> None:
    builder = Builder()
    options = make_options(settings=Settings(), gpus_per_node=WORLD, nodes=1, ignore=["AD"])
    rows = []
    for config in configurations(count, seed=seed):
        findings = check_sources([read_dict(config)], options).findings
        errors = [
            finding.code
            for finding in findings
            if finding.severity == "error" and finding.refused in ("reading", "building")
        ]
        warnings = [finding.code for finding in findings if finding.severity == "warning"]
        rows.append(
            {"config": config, "refusal": builder.refusal(config), "errors": errors, "warnings": warnings}
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
