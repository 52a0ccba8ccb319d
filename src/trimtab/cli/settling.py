"""From what a command line says of a job to a configuration on machines, without the parsing library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimtab import catalogue
from trimtab.auto import filled
from trimtab.cluster import Cluster, find_link, name_and_count
from trimtab.config import Config, fit_world
from trimtab.errors import RefusedConfig, UnknownArchitecture, UsageError
from trimtab.folders import history_file
from trimtab.model import find_hf, find_model
from trimtab.parameters.lora import copied_modules
from trimtab.units import parse_bytes

if TYPE_CHECKING:
    from trimtab.estimate import Estimate


def corrected_by_history(answer: Estimate) -> Estimate:
    """``answer`` with what this machine's history knows of its job; without a history it costs nothing."""
    file = history_file()
    if file is None or not os.path.exists(file):
        return answer
    from trimtab.corrections import corrected, traits_of
    from trimtab.store.database import measurements

    return corrected(answer, measurements(traits_of(answer)))


def settle(
    name: str,
    *,
    gpu: str | None = None,
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    link: str | None = None,
    host_memory: str | None = None,
    **job: Any,
) -> tuple[Config, Cluster, tuple[str, ...]]:
    """The configuration with the flags over it, the machines, and notes on what the flags moved.

    A catalogue configuration brings the hardware that it was made for; a file needs ``--gpu``.  ``job`` are
    the flags of `stated`.

    Raises:
        UsageError: no GPU is named, or the flags contradict each other.
        RefusedConfig: DeepSpeed would refuse the batch on these machines.
    """
    config, notes = stated(name, **job)
    cluster = machines(name, config, gpu, gpus_per_node, nodes, link, host_memory)
    if (
        name not in catalogue.names()
        and nodes is None
        and name_and_count(gpu or "", gpus_per_node)[1] is None
    ):
        whence = ", as the file's batch keys have it" if _stated_world(config) > 1 else ""
        notes = (*notes, f"no number of GPUs is stated: {cluster.world_size}{whence}")
    config, moved = fit_world(config, cluster.world_size)
    return config, cluster, notes + moved


def hold_to_the_engine(name: str, config: Config, cluster: Cluster | None) -> None:
    """Let no figure stand where there will be no run: a file of the user's own is checked first.

    Without ``cluster`` the batch is left open, for a command that will fit it.

    Raises:
        RefusedConfig: DeepSpeed stops as it reads the configuration or builds the engine.
    """
    if name in catalogue.names() and not os.path.exists(name):
        return
    from trimtab.check import check

    # "auto" is for transformers to fill in
    loader = "transformers" if '"auto"' in json.dumps(config.raw) else None
    per_node, nodes = (None, None) if cluster is None else (cluster.gpus_per_node, cluster.nodes)
    copied = copied_modules(config.job)
    if copied and config.stage == 3:
        raise RefusedConfig(
            f"{name}: adapters for {config.job.task} train a copy of {' and '.join(copied)}, which peft "
            "cannot make of ZeRO-3's parameters: the run ends as it begins. Set zero_optimization.stage to 2"
        )
    report = check(config.raw, loader=loader, gpus_per_node=per_node, nodes=nodes)
    for finding in report.findings:
        if finding.refused in ("reading", "building"):
            raise RefusedConfig(
                f"{name}: {finding.message} [{finding.code}, `trimtab explain {finding.code}`]"
            )


def stated(
    name: str,
    *,
    model: str | None = None,
    sequence_length: int | None = None,
    target_length: int | None = None,
    micro_batch: int | None = None,
    grad_accum: int | None = None,
    task: str | None = None,
    checkpoint_activations: bool | None = None,
    attention: str | None = None,
    kernels: str | None = None,
    lora_r: int | None = None,
    lora_targets: str | None = None,
) -> tuple[Config, tuple[str, ...]]:
    """The configuration with the flags over it, whatever the machines, and notes on what was assumed."""
    config = catalogue.load_config(name)
    block: dict[str, Any] = {
        "model": model,
        "task": task,
        "sequence_length": sequence_length,
        "target_length": target_length,
        "checkpoint_activations": checkpoint_activations,
        "attention": attention,
        "kernels": kernels,
    }
    changes = {f"trimtab.{key}": value for key, value in block.items() if value is not None}
    if lora_r is not None or lora_targets is not None:
        lora = {"r": lora_r or 8}
        targets = [one.strip() for one in (lora_targets or "").split(",") if one.strip()]
        changes["trimtab.lora"] = {**lora, "target_modules": targets} if targets else lora
    stated = config.raw.get("trimtab") or {}
    notes: tuple[str, ...] = ()
    if task is None and stated.get("task") is None:
        usual = _usual_task(model or config.job.model)
        if usual != config.job.task:
            changes["trimtab.task"] = usual
            notes = (f"no task is stated: {usual}, the usual one of this model",)
    for section in ("bf16", "fp16"):
        if _is_auto(config.raw.get(section)) and config.precision == "fp32":
            changes[f"{section}.enabled"] = True
            notes = (*notes, f'{section}.enabled is "auto": taken as true')
            break
    config = config.with_values(changes)
    if sequence_length is None and stated.get("sequence_length") is None:
        tokens = _usual_length(config)
        config = config.with_values({"trimtab.sequence_length": tokens})
        notes = (*notes, f"no sequence length is stated: {tokens} tokens a sample")
    config = _with_batch(config, micro_batch, grad_accum)
    config, said = filled(config, _hidden_size(config.job.model))
    return config, notes + said


def _hidden_size(model: str | None) -> int | None:
    """A model's width, also of an architecture that the arithmetic does not know; None if nobody says."""
    try:
        return find_model(model).hidden_size if model else None
    except UnknownArchitecture:
        hf = find_hf(model or "").hf
        sizes = (hf.get(key) for key in ("hidden_size", "n_embd", "d_model", "dim"))
        return next((size for size in sizes if isinstance(size, int)), None)


def _is_auto(section: Any) -> bool:
    return isinstance(section, dict) and section.get("enabled") == "auto"


def _usual_task(model: str | None) -> str:
    """What a model of this kind is trained on when nobody says: its pre-training."""
    try:
        kind: str = find_model(model).kind if model else "causal"
    except UnknownArchitecture:  # a rehearsal can still build it
        kind = _kind_of(find_hf(model or "").hf)
    return {"causal": "causal-lm", "encoder": "masked-lm", "encoder-decoder": "seq2seq-lm"}[kind]


def _kind_of(hf: Mapping[str, Any]) -> str:
    """What kind of model a config says that it is, whose architecture the arithmetic does not know."""
    if hf.get("is_encoder_decoder"):
        return "encoder-decoder"
    heads = hf.get("architectures")
    return (
        "encoder" if isinstance(heads, list) and any("ForMaskedLM" in str(one) for one in heads) else "causal"
    )


def _usual_length(config: Config) -> int:
    """The task's own length where nobody says, and no more than the model has positions."""
    usual = config.job.sequence_length
    try:
        positions = find_model(config.job.model).max_positions if config.job.model else 0
    except UnknownArchitecture:  # a rehearsal can still build it
        positions = 0
    return min(usual, positions) if positions > 0 else usual


def _with_batch(config: Config, micro: int | None, accumulation: int | None) -> Config:
    """The batch keys that the flags state; what they make untrue is left for DeepSpeed's rules to solve."""
    if micro is None and accumulation is None:
        return config
    changes: dict[str, Any] = {}
    if micro is not None:
        changes["train_micro_batch_size_per_gpu"] = micro
    if accumulation is not None:
        changes["gradient_accumulation_steps"] = accumulation
    elif config.get("gradient_accumulation_steps") is None:
        changes["gradient_accumulation_steps"] = 1
    return config.with_values({**changes, "train_batch_size": None})


def machines(
    name: str,
    config: Config,
    gpu: str | None = None,
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    link: str | None = None,
    host_memory: str | None = None,
) -> Cluster:
    """The machines that the flags name; what they leave open is what a ready configuration is made for."""
    joint = find_link(link) if link is not None else None
    inter = joint if joint is not None and joint.kind == "inter" else None
    intra = joint if joint is not None and joint.kind == "intra" else None
    memory = parse_bytes(host_memory) if host_memory is not None else None
    hardware = catalogue.hardware(name) if name in catalogue.names() else None
    if gpu is not None:
        gpu, gpus_per_node = name_and_count(gpu, gpus_per_node)
    if hardware is not None:
        own = gpu is None or gpu == hardware.gpu
        gpu, nodes = gpu or hardware.gpu, nodes or hardware.nodes
        if own and inter is None and hardware.inter_node_link is not None:
            inter = find_link(hardware.inter_node_link)
        if own and gpus_per_node is None and memory is None:
            memory = hardware.host_memory_bytes
        gpus_per_node = gpus_per_node or hardware.gpus_per_node
    if gpu is None:
        raise UsageError(f"{name}: on which GPU? Give --gpu NAME, such as --gpu a100-80gb --gpus-per-node 8")
    if gpus_per_node is None and nodes is None:
        gpus_per_node = min(8, _stated_world(config))
        nodes = max(1, _stated_world(config) // gpus_per_node)
    return Cluster.of(
        gpu, gpus_per_node or 1, nodes or 1, intra_link=intra, inter_link=inter, host_memory_bytes=memory
    )


def home(name: str) -> Cluster | None:
    """The machines that a ready configuration is made for; None for a file."""
    if name not in catalogue.names():
        return None
    hardware = catalogue.hardware(name)
    return Cluster.of(
        hardware.gpu,
        hardware.gpus_per_node,
        hardware.nodes,
        inter_link=hardware.inter_node_link,
        host_memory_bytes=hardware.host_memory_bytes,
    )


def _stated_world(config: Config) -> int:
    """The ranks that a file's three batch keys state together; 1 if they do not."""
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    train, micro, accumulation = (config.get(key) for key in keys)
    whole = all(isinstance(value, int) and value > 0 for value in (train, micro, accumulation))
    return max(1, train // (micro * accumulation)) if whole else 1
