"""One of two ranks that train every catalogue configuration, interrupted and not, in one process each.

usage: python -m torch.distributed.run --nproc_per_node 2 catalogue_worker.py DATA_FOLDER OUTPUT_FOLDER

Rank 0 appends a JSON line for each configuration to OUTPUT_FOLDER/results.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from trimtab import catalogue
from trimtab.train.checkpoint import verify
from trimtab.train.loop import run
from trimtab.train.metrics import read_steps
from trimtab.train.settings import Settings, effective_config

STEPS = 12
# a classifier's loss falls slowly under its noise; adapters need a base that has learned something, and have
# little
# to win on it
LONGER = {"bert_base_finetuning": 60, "llama_7b_single_node": 60, "llama_lora_finetune": 45}
DATA = {
    "causal-lm": "code.txt",
    "masked-lm": "prose.txt",
    "span-corruption": "prose.txt",
    "sequence-classification": "labelled.jsonl",
    "seq2seq-lm": "summaries.jsonl",
}
TOKENIZERS = {"llama": "bpe", "gpt": "bpe", "bert": "wordpiece", "t5": "unigram"}


def steps_of(name: str) -> tuple[int, int]:
    """Steps of the whole run, and the step at which the interrupted one ended."""
    steps = LONGER.get(name, STEPS)
    return steps, steps * 2 // 3


def settings_of(name: str, data: Path, output: Path) -> Settings:
    """The catalogue's file with a small model, short sequences and batches, and a rate that a short run can
    use.
    """
    config = catalogue.load_config(name)
    micro = min(
        16 if config.job.task == "sequence-classification" else 4,
        config.raw["train_micro_batch_size_per_gpu"],
    )
    accumulation = min(2, config.raw.get("gradient_accumulation_steps", 1))
    changes = [
        f"train_batch_size={micro * accumulation * 2}",
        f"train_micro_batch_size_per_gpu={micro}",
        f"gradient_accumulation_steps={accumulation}",
        "trimtab.sequence_length=64",
    ]
    if config.job.target_length:
        changes.append("trimtab.target_length=24")
    lora = config.job.lora is not None
    return Settings(
        config=name,
        # adapters are trained on a model that already knows something: code first, then prose
        data=(str(data / ("prose.txt" if lora else DATA[config.job.task])),),
        run=str(output / name),
        pretrained=str(output / "llama_7b_single_node" / "model") if lora else None,
        tokenizer=None if lora else str(data / TOKENIZERS[catalogue.card(name).family]),
        shrink=not lora,
        steps=steps_of(name)[0],
        save_every=steps_of(name)[1],
        keep=2,
        learning_rate=1e-2 if lora else 1e-3 if config.job.task == "sequence-classification" else 3e-3,
        warmup_steps=2,
        changes=tuple(changes),
        device="cpu",
        sample_tokens=4,
    )


def prove(name: str, data: Path, output: Path, rank: int) -> dict:
    settings = settings_of(name, data, output)
    whole = run(settings)
    whole_folder, again_folder = Path(settings.run), output / f"{name}-again"
    steps, _ = steps_of(name)
    if rank == 0:  # the same run, ended at two thirds
        shutil.copytree(
            whole_folder, again_folder, ignore=shutil.ignore_patterns("model", f"step-{steps:06d}")
        )
    resumed = run(replace(settings, run=str(again_folder), resume="required"))
    if rank != 0:
        return {}
    losses = {row["step"]: row["loss"].hex() for row in read_steps(whole_folder / "events.jsonl")}
    again = {row["step"]: row["loss"].hex() for row in read_steps(again_folder / "events.jsonl")}
    manifest = verify(whole_folder / "checkpoints" / f"step-{steps:06d}")
    config, notes = effective_config(settings, world=2)
    return {
        "exit_codes": [whole.exit_code, resumed.exit_code],
        "losses": losses,
        "resumed": again,
        "checkpoint": {
            "step": manifest.step,
            "files": len(manifest.files),
            "world_size": manifest.world_size,
        },
        "stage": config.stage,
        "changes": [*settings.changes, *notes],
        "report": dict(whole.report or {}),
    }


def main() -> None:
    data, output, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(catalogue.names())
    rank = int(os.environ["RANK"])
    # the adapters' run starts from the weights that llama_7b_single_node leaves
    names.sort(key=lambda name: name == "llama_lora_finetune")
    for name in names:
        started = time.monotonic()
        try:
            with (
                open(output / f"log-{rank}.txt", "a", encoding="utf-8") as log,
                contextlib.redirect_stderr(log),
            ):
                result = prove(name, data, output, rank)
        except Exception:
            with open(output / f"error-{rank}.txt", "a", encoding="utf-8") as file:
                file.write(f"{name}\n{traceback.format_exc()}\n")
            raise
        if rank == 0:
            with open(output / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "seconds": time.monotonic() - started} | result) + "\n")


if __name__ == "__main__":
    main()
