"""The flags that describe a job and its machines, shared by every command that answers about one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import typer

from trimtab.cli.settling import corrected_by_history, home, machines, settle, stated
from trimtab.job import ATTENTIONS, KERNELS, TASKS

__all__ = ("corrected_by_history", "home", "machines", "settle", "stated")

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A name from `trimtab list`, or a file.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="M", help="A catalogue name, a Hugging Face id or a config.json."),
]
GpuOption = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Such as a100-80gb, h100, t4.")]
GpusOption = Annotated[
    int | None, typer.Option("--gpus-per-node", metavar="N", min=1, help="GPUs in a machine.")
]
NodesOption = Annotated[int | None, typer.Option("--nodes", metavar="N", min=1, help="Machines.")]
LinkOption = Annotated[
    str | None,
    typer.Option(
        "--link", metavar="NAME", help="What joins the nodes, or the GPUs of one: ethernet-100g, pcie4."
    ),
]
HostMemoryOption = Annotated[
    str | None, typer.Option("--host-memory", metavar="SIZE", help="Memory of a machine, such as 256GiB.")
]
SequenceOption = Annotated[
    int | None, typer.Option("--sequence-length", metavar="N", min=1, help="Tokens of a sample.")
]
TargetOption = Annotated[
    int | None, typer.Option("--target-length", metavar="N", min=1, help="Tokens of a target (T5).")
]
MicroOption = Annotated[
    int | None, typer.Option("--micro-batch", metavar="N", min=1, help="Samples per GPU and micro step.")
]
AccumulationOption = Annotated[
    int | None, typer.Option("--grad-accum", metavar="N", min=1, help="Micro steps per optimizer step.")
]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="T", help=", ".join(TASKS))]
RecomputeOption = Annotated[
    bool | None,
    typer.Option("--checkpoint-activations/--no-checkpoint-activations", help="Recompute activations."),
]
AttentionOption = Annotated[str | None, typer.Option("--attention", metavar="A", help=", ".join(ATTENTIONS))]
KernelsOption = Annotated[str | None, typer.Option("--kernels", metavar="K", help=", ".join(KERNELS))]
LoraRankOption = Annotated[
    int | None, typer.Option("--lora-r", metavar="R", min=1, help="LoRA with this rank.")
]
LoraTargetsOption = Annotated[
    str | None, typer.Option("--lora-targets", metavar="A,B", help="Modules that LoRA adapts.")
]
NoCorrectionsOption = Annotated[
    bool, typer.Option("--no-corrections", help="Leave out what runs on this machine have measured.")
]
PictureOption = Annotated[
    str | None,
    typer.Option("--picture", metavar="FILE", help="Draw memory too: a .svg, .png or .html file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

MACHINES: Mapping[str, Any] = {
    "gpu": GpuOption,
    "gpus_per_node": GpusOption,
    "nodes": NodesOption,
    "link": LinkOption,
    "host_memory": HostMemoryOption,
}
JOB: Mapping[str, Any] = {
    "sequence_length": SequenceOption,
    "target_length": TargetOption,
    "micro_batch": MicroOption,
    "grad_accum": AccumulationOption,
    "task": TaskOption,
    "checkpoint_activations": RecomputeOption,
    "attention": AttentionOption,
    "kernels": KernelsOption,
    "lora_r": LoraRankOption,
    "lora_targets": LoraTargetsOption,
}
FLAGS: Mapping[str, Any] = {"model": ModelOption, **MACHINES, **JOB}
Given = dict[str, Any]
"""What a command line says of a job, by the names of `trimtab.cli.settling.settle`."""
Command = TypeVar("Command", bound=Callable[..., Any])


def takes(*names: str) -> Callable[[Command], Command]:
    """Let a command take the flags ``names`` of `FLAGS`, which come to it together as its ``flags``."""

    def with_flags(command: Command) -> Command:
        kinds = get_type_hints(command, include_extras=True)
        parameters = []
        for one in inspect.signature(command).parameters.values():
            if one.name == "flags":
                parameters += [
                    inspect.Parameter(name, one.kind, default=None, annotation=FLAGS[name]) for name in names
                ]
            else:
                parameters.append(one.replace(annotation=kinds[one.name]))

        @wraps(command)
        def run(**given: Any) -> Any:
            flags = {name: given.pop(name, None) for name in names}
            return command(flags=flags, **given)

        run.__dict__["__signature__"] = inspect.Signature(parameters, return_annotation=kinds.get("return"))
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return cast(Command, run)

    return with_flags
