"""Turn what prove_on_gpu.py wrote into the figures that `trimtab show` prints.

    add_figures.py

Reads bench/data/catalogue_proof.jsonl; writes src/trimtab/data/measured.jsonl and the table of docs/proof.md.
They hold what the proofs hold and nothing else; every row says how its figure was got and where.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROOFS = ROOT / "bench" / "data" / "catalogue_proof.jsonl"
MEASURED = ROOT / "src" / "trimtab" / "data" / "measured.jsonl"
PAGE = ROOT / "docs" / "proof.md"
TABLE = re.compile(r"(<!-- figures -->\n)(.*)(<!-- end of figures -->)", re.DOTALL)
GIB = 2**30
BY_TOKENS = "causal-lm"
"""The task whose speed is counted in tokens; the others' is counted in samples, as in the guide."""


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    proofs = [json.loads(line) for line in PROOFS.read_text("utf-8").splitlines()]
    failed = [proof["id"] for proof in proofs if not proof["ok"]]
    if failed:
        print(f"left out, for they failed: {', '.join(failed)}", file=sys.stderr)
    rows = figures(proof for proof in proofs if proof["ok"])
    MEASURED.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda found: f"{found[1]}{table(rows)}{found[3]}", page), encoding="utf-8")
    print(f"{len(rows)} figures of {len({row['config'] for row in rows})} configurations")
    return 0


def figures(proofs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all proofs, by configuration; a figure that two runs agree on stands once."""
    rows = [row for proof in proofs for row in of_proof(proof)]
    seen = {json.dumps(row, sort_keys=True): row for row in rows}
    return sorted(seen.values(), key=lambda row: row["config"])


def of_proof(proof: dict[str, Any]) -> Iterator[dict[str, Any]]:
    world = proof["world"]
    gpu = proof["gpu"].removeprefix("NVIDIA ")
    rehearsed = proof["group"] == "fake"
    common = {
        "config": proof["id"],
        "how": "rehearsed" if rehearsed else "measured",
        "where": f"{gpu}, rank 0 of {world}" if rehearsed else f"{world} × {gpu}",
        "gpu": gpu.lower(),
        "world_size": world,
        "software": ", ".join(f"{name} {proof[name]}" for name in ("torch", "deepspeed", "transformers")),
        "date": proof["date"],
    }

    def row(quantity: str, value: float, *conditions: str | None) -> dict[str, Any]:
        said = "; ".join(filter(None, conditions))
        return {
            "config": common["config"], "quantity": quantity, "value": value,
            **common, **({"conditions": said} if said else {}),
        }  # fmt: skip

    accumulation = shortened(proof)
    yield row("gpu_memory_bytes", round(proof["gib"]["end"]["peak_alloc"] * GIB), accumulation)
    yield row("host_memory_bytes_per_rank", round(proof["host_rss_gib"] * GIB))
    seconds = proof["step_seconds"]
    speed_conditions = (
        accumulation,
        "without communication" if rehearsed else None,
        proof.get("beside") and f"{proof['beside']}: rough",
    )
    samples = proof["mbs"] * proof["gas"] / seconds
    if task(proof["id"]) == BY_TOKENS:
        yield row("tokens_per_second_per_gpu", round(samples * proof["seq"], 1), *speed_conditions)
    else:
        yield row("samples_per_second_per_gpu", round(samples, 3), *speed_conditions)
    yield row("step_seconds", seconds, *speed_conditions)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: one line for each way in which a configuration was run, the first run of each."""
    runs: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["config"], row["how"], row["where"]), {}).setdefault(row["quantity"], row)
    lines = [
        "| configuration | how | where | GPU memory | host, a rank | step | speed a GPU | accumulation |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for (name, how, where), run in runs.items():
        memory, host = run["gpu_memory_bytes"], run["host_memory_bytes_per_rank"]
        speed = next(run[quantity]["value"] for quantity in run if quantity.endswith("per_second_per_gpu"))
        said = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        unit = "tokens/s" if "tokens_per_second_per_gpu" in run else "samples/s"
        cut = re.search(r"accumulation (\d+ of \d+)", run["step_seconds"].get("conditions", ""))
        rough = "~" if "rough" in run["step_seconds"].get("conditions", "") else ""
        lines.append(
            f"| `{name}` | {how} | {where} | {memory['value'] / GIB:.2f} GiB | {host['value'] / GIB:.1f} GiB "
            f"| {rough}{run['step_seconds']['value']:.3g} s | {rough}{said} {unit} "
            f"| {cut[1] if cut else 'as in the file'} |"
        )
    return "\n".join(lines) + "\n"


def shortened(proof: dict[str, Any]) -> str | None:
    """``accumulation 2 of 8`` where the proof took fewer micro steps than the file."""
    for change in proof["changed"]:
        if found := re.fullmatch(r"accumulation (\d+) measured as (\d+)", change):
            return None if found[1] == found[2] else f"accumulation {found[2]} of {found[1]}"
    return None


def task(name: str) -> str:
    (file,) = (ROOT / "src" / "trimtab" / "data" / "configs").glob(f"*/{name}.json")
    return json.loads(file.read_text(encoding="utf-8"))["trimtab"]["task"]


if __name__ == "__main__":
    sys.exit(main())
