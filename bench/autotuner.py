"""DeepSpeed's own autotuner and `trimtab plan` on the same job, side by side.

    python bench/autotuner.py --output FOLDER [--model gpt2] [--limit 240] [--stages 0,1,2,3]
    python bench/autotuner.py --output FOLDER --device cpu --tiny      tries the path

Both get the same model, sequence and global batch on one GPU.  The autotuner is started as its documentation
says (``deepspeed --autotuning tune SCRIPT --deepspeed_config FILE``), with this file as the training script,
and with settings that keep it short: fast mode (stages and micro batches alone), `STEPS` profiled, micro
batches up to the global batch.  After ``--limit`` seconds it is ended, and the best of what it had measured
by then counts.  Then its answer and the plan's are measured by `bench/case_pool.py`.

FOLDER gets ``autotuner.json`` (both answers, seconds, experiments and their metrics), ``autotuner.log``
(everything that it and its experiments wrote) and ``autotuner_rows.jsonl`` (the two answers measured).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

STEPS = (3, 5)
"""The first and the last step that the autotuner profiles: its defaults."""
TINY_BATCH = 8


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The file that the autotuner starts from; it fills in stage, micro batch and accumulation."""
    batch = global_batch(options)
    optimizer: dict[str, Any] = {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}
    if options.device == "cpu":
        optimizer["torch_adam"] = True
    return {
        "optimizer": {"type": "AdamW", "params": optimizer},
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": [int(stage) for stage in options.stages.split(",")]},
        "steps_per_print": 10**9,
        "autotuning": {
            "enabled": True,
            "fast": True,
            "metric": "throughput",
            "start_profile_step": STEPS[0],
            "end_profile_step": STEPS[1],
            "max_train_batch_size": batch,
            "max_train_micro_batch_size_per_gpu": batch,
            "tuner_early_stopping": 3,
            "results_dir": str(options.work / "results"),
            "exps_dir": str(options.work / "exps"),
        },
    }


def global_batch(options: argparse.Namespace) -> int:
    """Samples of a step, as in `bench/grid.py`."""
    from grid import MODELS

    return TINY_BATCH if options.tiny else MODELS[options.model]["samples_per_gpu"][1]


def train(arguments: list[str]) -> None:
    """The training script: what the autotuner's experiments run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--device")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("--deepspeed_config")
    options = parser.parse_args(arguments)

    from grid import job as grid_job

    from trimtab.config import Config
    from trimtab.train.engine import choose_accelerator, import_deepspeed
    from trimtab.train.model import Build, build_model, prepare_config, read_model_config
    from trimtab.train.samples import random_batch
    from trimtab.train.shrink import shrink

    choose_accelerator(options.device)
    deepspeed = import_deepspeed(options.device)
    deepspeed.init_distributed(dist_backend="nccl" if options.device == "cuda" else "gloo", verbose=False)
    # the model of the job, plain: the autotuner knows nothing of recomputation
    plain = grid_job(options.model, 1, 0, "none", False, 1)["config"]
    config = Config.from_mapping(plain, name=options.model)
    hf = read_model_config(config.job.model)
    if options.tiny:
        hf = shrink(hf)
        config = config.with_values({"trimtab.sequence_length": 32})
    prepare_config(hf, config.job)
    built = build_model(config, hf, Build(initialize=False), device=options.device)
    engine, *_ = deepspeed.initialize(
        model=built.module,
        model_parameters=built.module.parameters(),
        config=options.deepspeed_config,
        dist_init_required=False,
    )
    micro = engine.train_micro_batch_size_per_gpu()
    for _ in range((STEPS[1] + 2) * engine.gradient_accumulation_steps()):
        loss = engine(**random_batch(config.job, hf, samples=micro, device=engine.device)).loss
        engine.backward(loss)
        engine.step()


def shims(folder: Path) -> None:
    """The two programs that the autotuner starts by name: the launcher, and pdsh, which has nothing to do."""
    folder.mkdir(parents=True)
    for name, body in (
        ("deepspeed", f'exec "{sys.executable}" -m deepspeed.launcher.runner "$@"'),
        ("pdsh", "exit 0"),
    ):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """Run the autotuner until it ends or its time is up; what it found."""
    file = options.work / "start.json"
    file.write_text(json.dumps(settings(options), indent=2), encoding="utf-8")
    shims(options.work / "bin")
    command = [
        "deepspeed", "--num_gpus", "1", "--autotuning", "tune", str(Path(__file__).resolve()),
        "--train", "--model", options.model, "--device", options.device, *["--tiny"] * options.tiny,
        "--deepspeed_config", str(file),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PATH": f"{options.work / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": options.device,
        "USER": os.environ.get("USER", "root"),
    }
    started = time.time()
    with open(options.work / "autotuner.out", "wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=options.work,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=options.limit)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"seconds": round(time.time() - started, 1), "exit_code": code, "ended": code is not None}


def experiments(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each experiment was and measured, in the order in which they ran."""
    found = []
    for folder in sorted((options.work / "results").glob("*/"), key=lambda one: one.stat().st_ctime):
        config = _json(folder / "ds_config.json")
        if config is None:
            continue
        metrics = _json(folder / "metrics.json")
        found.append(
            {
                "name": folder.name,
                "stage": config.get("zero_optimization", {}).get("stage", 0),
                "micro": config.get("train_micro_batch_size_per_gpu"),
                "accumulation": config.get("gradient_accumulation_steps", 1),
                "throughput": None if metrics is None else metrics.get("throughput"),
                "metrics": metrics,
            }
        )
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def keep_logs(options: argparse.Namespace) -> None:
    """All that was written, as one file."""
    with open(options.output / "autotuner.log", "w", encoding="utf-8") as log:
        for path in (options.work / "autotuner.out", *sorted((options.work / "results").glob("*/*.log"))):
            if path.exists():
                log.write(f"==== {path.relative_to(options.work)}\n")
                log.write(path.read_text("utf-8", errors="replace")[-20_000:] + "\n")


def as_job(
    options: argparse.Namespace, name: str, stage: int, micro: int, recompute: bool | int
) -> dict[str, Any]:
    """An answer as a job at the common global batch, or as near below it as its micro batch comes."""
    from grid import job as grid_job

    one = grid_job(options.model, 1, stage, "none", recompute, micro)
    config = dict(one["config"])
    config["train_batch_size"] = micro * config["gradient_accumulation_steps"]
    return {**one, "id": name, "family": name, "config": config}


def main() -> int:
    if "--train" in sys.argv[1:]:
        train(sys.argv[1:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--limit", type=float, default=240, help="seconds for the autotuner")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a shrunken model: tries the path")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    options.work = Path(tempfile.mkdtemp(prefix="autotuner-"))

    answer: dict[str, Any] = {"model": options.model, "batch": global_batch(options)}
    answer["settings"] = settings(options)
    answer["autotuner"] = tune(options)
    found = experiments(options)
    keep_logs(options)
    measured = [one for one in found if one["throughput"]]
    best = max(measured, key=lambda one: one["throughput"], default=None)
    answer["autotuner"].update(experiments=found, answer=best)
    jobs = []
    if best is not None:
        jobs.append(as_job(options, "autotuner", best["stage"], best["micro"], False))

    started = time.time()
    from grid import MODELS

    from trimtab.plan import plan

    made = plan(
        options.model,
        gpu="h200",
        gpus_per_node=1,
        objective="pretrain",
        global_batch=MODELS[options.model]["samples_per_gpu"][1],
        sequence_length=MODELS[options.model]["sequence_length"],
        alternatives=False,
    ).chosen
    assert made is not None
    answer["plan"] = {"seconds": round(time.time() - started, 2), "summary": made.summary, "experiments": 0}
    config = made.config
    micro = config.batch(1).micro
    jobs.insert(0, as_job(options, "plan", config.stage, micro, config.job.recomputation))

    file = options.work / "jobs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in jobs), encoding="utf-8")
    rows = options.output / "autotuner_rows.jsonl"
    rows.unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, str(ROOT / "bench" / "case_pool.py"), str(file), "--output", str(rows),
         "--device", options.device, *["--tiny"] * options.tiny],
        check=False,
    )  # fmt: skip
    for line in rows.read_text("utf-8").splitlines() if rows.exists() else []:
        row = json.loads(line)
        samples = row["mbs"] * row["gas"] if row["ok"] else None
        rate = None if samples is None else round(samples / row["step_seconds"], 2)
        answer[row["id"]]["measured"] = {
            "step_seconds": row["step_seconds"], "samples": samples, "samples_per_second": rate,
        }  # fmt: skip
    (options.output / "autotuner.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    show(answer)
    shutil.rmtree(options.work, ignore_errors=True)
    return 0


def show(answer: dict[str, Any]) -> None:
    """Both in a few lines."""
    tuner, planned = answer["autotuner"], answer["plan"]
    ended = "ended by itself" if tuner["ended"] else "ended by the time limit"
    print(f"autotuner: {tuner['seconds']} s, {len(tuner['experiments'])} experiments, {ended}")
    for one in tuner["experiments"]:
        print(f"    {one['name']:28} throughput {one['throughput']}")
    best = tuner["answer"]
    if best is not None:
        print(f"    its answer: stage {best['stage']}, micro batch {best['micro']}: {tuner.get('measured')}")
    print(f"plan: {planned['seconds']} s; {planned['summary']}: {planned.get('measured')}")


if __name__ == "__main__":
    sys.exit(main())
