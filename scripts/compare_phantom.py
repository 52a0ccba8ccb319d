"""Hold phantom rehearsals against cases measured on GPUs.

usage: python scripts/compare_phantom.py [DATA.jsonl ...] [--out RESULT.jsonl] [--only TEXT] [--missing]

Prints, at each moment of a case, what the phantom says and what the GPU's allocator showed (GiB), and writes
one JSON line a case.  All files of bench/data were measured on NVIDIA H200 GPUs with torch 2.11.0+cu130,
deepspeed 0.19.8 and transformers 5.17.0 (random weights and tokens).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from make_accuracy import DATA, MEASURED, TASKS

from trimtab.errors import TrimtabError
from trimtab.job import Job
from trimtab.rehearse.request import MOMENTS, PhantomRequest
from trimtab.rehearse.series import rehearse_forked
from trimtab.units import GIB


def request_of(case: dict[str, Any]) -> PhantomRequest:
    """The phantom's request for one measured case."""
    job = Job.from_block({"checkpoint_activations": case["checkpointing"], "lora": case.get("lora")})
    return PhantomRequest(
        deepspeed=case["deepspeed_config"],
        hf=case["hf"],
        micro_batch=case["mbs"],
        accumulation=case["gas"],
        task=TASKS.get(case["arch"], case["arch"]),
        sequence_length=case["seq"],
        target_length=case.get("tgt"),
        checkpoint_activations=job.checkpoint_activations,
        recomputed_layers=job.recomputed_layers,
        attention=case["attention"],
        kernels=case.get("kernels", "plain"),
        lora=job.lora,
        world_size=case["world"],
    )


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """One row: phantom and measured GiB at each moment that was measured."""
    answer = rehearse_forked(request_of(case))
    moments = {}
    for name in MOMENTS:
        if name in case["gib"]:
            moment, gpu = answer.moment(name), case["gib"][name]
            moments[name] = {
                "alloc": [round(moment.blocks_bytes / GIB, 3), gpu["alloc"]],
                "peak_alloc": [round(moment.peak_blocks_bytes / GIB, 3), gpu["peak_alloc"]],
                "peak_reserved": [round(moment.peak_reserved_bytes / GIB, 3), gpu["peak_reserved"]],
            }
    return {
        "id": case["id"],
        "moments": moments,
        "tensors_peak_gib": round(answer.step_peak_bytes / GIB, 3),
        "workspace_gib": round(answer.workspace_bytes / GIB, 4),
        "host_gib": round(answer.moment("end").host_bytes / GIB, 3),
        "host_rss_gib": case.get("host_rss_gib"),
        "optimizer": [answer.engine_optimizer, case.get("optimizer")],
        "basic_optimizer": [answer.optimizer, case.get("basic_optimizer")],
        "seconds": round(answer.seconds, 1),
        "versions": dict(answer.versions),
    }


def main() -> int:
    """Compare every case of the file; exit code 1 if a rehearsal failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path, default=[DATA / name for name in MEASURED])
    parser.add_argument("--out", type=Path, default=DATA / "phantom_vs_h200.jsonl")
    parser.add_argument("--only", default="", help="cases whose id holds this text")
    parser.add_argument("--missing", action="store_true", help="only cases that RESULT does not have yet")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if options.out.exists():
        rows = {row["id"]: row for row in map(json.loads, options.out.read_text("utf-8").splitlines())}
    errors, failed = [], 0
    lines = [line for file in options.data for line in file.read_text(encoding="utf-8").splitlines()]
    for case in map(json.loads, lines):
        if (
            "end" not in case["gib"]
            or options.only not in case["id"]
            or (options.missing and case["id"] in rows)
        ):
            continue
        try:
            row = compare(case)
        except TrimtabError as error:
            failed += 1
            print(f"{case['id']}: {error}", file=sys.stderr)
            continue
        rows[row["id"]] = row
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
        print(f"{row['id']}  ({row['seconds']} s, host {row['host_gib']} of rss {row['host_rss_gib']})")
        for name, figures in row["moments"].items():
            texts = (
                f"{key} {ours:.3f} / {gpu:.3f} ({ours / gpu - 1 if gpu else 0:+.2%})"
                for key, (ours, gpu) in figures.items()
            )
            print(f"  {name:15s} {'   '.join(texts)}", flush=True)
        if "end" in row["moments"]:
            ours, gpu = row["moments"]["end"]["peak_alloc"]
            errors.append(abs(ours / gpu - 1))
    if errors:
        print(f"{len(errors)} peaks: median error {statistics.median(errors):.3%}, largest {max(errors):.3%}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
