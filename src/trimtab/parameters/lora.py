"""Parameter lists under LoRA, as peft's ``get_peft_model`` leaves them (peft 0.21)."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.errors import UsageError
from trimtab.hf_config import lora_targets
from trimtab.job import Job, Lora
from trimtab.model import Model
from trimtab.parameters.lists import Parameter, first_names
from trimtab.parameters.modules import Module, Skeleton

ALL_LINEAR = "all-linear"
_WRAPPED = "base_model.model."
# Heads that peft's task classes keep trainable (peft_model.py: PeftModelForSequenceClassification,
# PeftModelForTokenClassification and PeftModelForQuestionAnswering).
_HEADS = {
    "sequence-classification": ("classifier", "score"),
    "token-classification": ("classifier", "score"),
    "question-answering": ("qa_outputs",),
}
# For these the shorthand sweeps up the head itself, and ModulesToSaveWrapper then refuses it; for
# sequence classification peft leaves the head out (DistilBERT's pre_classifier excepted).
_HEAD_IS_LINEAR = ("token-classification", "question-answering")
_ADAPTABLE = ("linear", "conv1d", "embedding")


def copied_modules(job: Job) -> tuple[str, ...]:
    """The modules, by any name they go by, of which peft trains a copy beside the adapters, if any."""
    if job.lora is None:
        return ()
    head = _HEADS.get(job.task)
    return ((" or ".join(head),) if head else ()) + job.lora.modules_to_save


def adapted(model: Model, task: str, build: Skeleton, lora: Lora) -> tuple[Parameter, ...]:
    """The parameters of ``build`` with adapters of rank ``lora.r`` on its target modules.

    The one target "all-linear" is peft's shorthand for every linear layer but the output head.  Raises
    UsageError where nothing matches, or where nothing is named and peft has no default for the model type.
    """
    saved = _saved_roots(build, (*_HEADS.get(task, ()), *lora.modules_to_save))
    targets = _targets(model, task, build, lora, saved)
    aliases = first_names(build)
    found: list[Parameter] = []
    done: set[str] = set()
    for module in build.modules:
        root = next((root for root in saved if _inside(module.path, root)), None)
        if root is not None:
            if root not in done:
                done.add(root)
                found += _saved(root, build, aliases)
            continue
        adapter = _adapter(module, lora.r) if module.path in targets else []
        path = f"{_WRAPPED}{module.path}{'.base_layer' if adapter else ''}"
        found += [
            Parameter(f"{path}.{name}", shape, path, False)
            for name, shape in module.tensors
            if _is_first(aliases, f"{module.path}.{name}")
        ]
        found += adapter
    return tuple(found)


def _is_first(aliases: Mapping[str, str], name: str) -> bool:
    return aliases.get(name, name) == name


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}.")


def _targets(model: Model, task: str, build: Skeleton, lora: Lora, saved: list[str]) -> frozenset[str]:
    names = lora.target_modules or lora_targets(model.model_type)
    if names is None:
        raise UsageError(
            f'{model.name}: peft has no default LoRA targets for {model.model_type}; name "target_modules", '
            f'for example ["{ALL_LINEAR}"].'
        )
    free = [module for module in build.modules if not any(_inside(module.path, root) for root in saved)]
    if tuple(names) == (ALL_LINEAR,):
        linears = [module.path for module in free if module.kind in ("linear", "conv1d")]
        if task in _HEAD_IS_LINEAR or (task in _HEADS and model.model_type == "distilbert"):
            adaptable = ", ".join(sorted({path.rpartition(".")[2] for path in linears}))
            raise UsageError(
                f'{model.name} for {task}: peft refuses "{ALL_LINEAR}" here, because it would adapt the head '
                f"that it has to train whole. Name the modules: {adaptable}."
            )
        return frozenset(path for path in linears if path != build.output_embedding)
    matched = [
        module.path
        for module in free
        if module.kind in _ADAPTABLE
        and any(module.path == name or module.path.endswith(f".{name}") for name in names)
    ]
    if not matched:
        linear_names = sorted(
            {module.path.rpartition(".")[2] for module in free if module.kind in ("linear", "conv1d")}
        )
        raise UsageError(
            f"{model.name} for {task}: no module is called {' or '.join(names)}; LoRA can adapt "
            f"{', '.join(linear_names)}."
        )
    return frozenset(matched)


def _adapter(module: Module, rank: int) -> list[Parameter]:
    base = f"{_WRAPPED}{module.path}"
    if module.kind == "embedding":
        rows, width = module.tensors[0][1]
        return [
            Parameter(f"{base}.lora_embedding_A.default", (rank, rows), f"{base}.lora_embedding_A"),
            Parameter(f"{base}.lora_embedding_B.default", (width, rank), f"{base}.lora_embedding_B"),
        ]
    return [
        Parameter(f"{base}.lora_A.default.weight", (rank, module.inputs), f"{base}.lora_A.default"),
        Parameter(f"{base}.lora_B.default.weight", (module.outputs, rank), f"{base}.lora_B.default"),
    ]


def _saved_roots(build: Skeleton, names: tuple[str, ...]) -> list[str]:
    """The outermost modules whose path ends in one of ``names``, as peft's ``_set_trainable`` finds them."""
    roots: list[str] = []
    for module in build.modules:
        steps = module.path.split(".")
        for depth in range(1, len(steps) + 1):
            path = ".".join(steps[:depth])
            if path not in roots and any(path.endswith(name) for name in names):
                roots.append(path)
                break
    return roots


def _saved(root: str, build: Skeleton, aliases: Mapping[str, str]) -> list[Parameter]:
    """A module kept whole: the frozen original, then the copy that trains."""
    members = [module for module in build.modules if _inside(module.path, root)]
    found = []
    for place, trainable in (("original_module", False), ("modules_to_save.default", True)):
        for module in members:
            path = f"{_WRAPPED}{root}.{place}{module.path[len(root) :]}"
            found += [
                Parameter(f"{path}.{name}", shape, path, trainable)
                for name, shape in module.tensors
                if trainable or _is_first(aliases, f"{module.path}.{name}")
            ]
    return found
