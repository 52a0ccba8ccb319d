"""AutoTP: which modules DeepSpeed 0.19.8 splits over a tensor-parallel group, how, and what it cannot train.

With `tensor_parallel.autotp_size` the engine follows transformers' own plan where the class has one
(module_inject/tp_plan_converter.py), and else splits the linear layers inside the layers
(module_inject/auto_tp.py, ``tp_parser``).
That the losses of a split model are those of the whole one was seen on two and four ranks for each of
`PLANNED` and `BY_NAME` (fp32, SGD, four steps).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from trimtab.config import GRADIENT_CLIPPING_DEFAULT, Config
from trimtab.frozen import replace
from trimtab.model import Model
from trimtab.parameters.lists import Parameter, parameters

Style = Literal["column", "row", "gathered", "vocabulary"]
"""``column``: outputs split.  ``row``: inputs split, outputs summed over the group.  ``gathered``: a column
whose outputs are put together again.  ``vocabulary``: rows of an embedding tied to a head that is split."""

PLANNED = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "starcoder2", "olmo", "gpt_neox")
)
"""Model types whose classes carry a plan that the engine converts."""
BY_NAME = frozenset(
    ("stablelm", "gptj", "gpt_neo", "opt", "bert", "roberta", "xlm-roberta", "distilbert", "electra")
)
"""Those without one."""
# scaled embeddings and soft-capped logits keep a tied head whole (runtime/engine.py:1163-1180)
_WHOLE_HEAD = frozenset(("gemma", "gemma2"))

_PLAN = "transformers' plan holds rowwise_split_input, which AutoTP refuses (tp_plan_converter.py:44)"
_FUSED = "AutoTP splits its query_key_value and leaves its heads whole: the first forward pass fails"
_NORM = "AutoTP counts one rank's shard of relative_attention_bias in the norm that gradients are clipped by"
_BROKEN: Mapping[str, str] = {
    "gpt2": "AutoTP refuses GPT-2 (module_inject/auto_tp.py:292, AutoTP.supported)",
    "phi3": _PLAN,
    "olmo2": _PLAN,
    "bloom": _FUSED,
    "falcon": _FUSED,
    "t5": _NORM,
    "mt5": _NORM,
}
_COLUMNS = frozenset((
    "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1", "c_fc", "fc_in", "query_key_value",
    "dense_h_to_4h", "self.query", "self.key", "self.value", "intermediate.dense", "q_lin", "k_lin", "v_lin",
    "lin1",
))  # fmt: skip
_ROWS = frozenset((
    "o_proj", "out_proj", "self_attn.dense", "attention.dense", "down_proj", "mlp.c_proj", "fc2", "fc_out",
    "dense_4h_to_h", "output.dense", "out_lin", "lin2",
))  # fmt: skip


def why_not(config: Config, model: Model) -> str | None:
    """None where ``config`` can split ``model`` as it says, else why it cannot or is not known to."""
    job, size = config.job, config.tensor_parallel
    if model.model_type in _BROKEN:
        return _BROKEN[model.model_type]
    if model.model_type not in PLANNED | BY_NAME:
        return f"no one has seen AutoTP train {model.model_type} as one GPU does"
    if model.kv_heads % size or model.intermediate_size % size:
        return (
            f"{size} does not divide {model.kv_heads} key-value heads and a feed-forward width of "
            f"{model.intermediate_size} (module_inject/tp_shard.py)"
        )
    if job.lora is not None:
        return (
            "AutoTP replaces the modules that peft has wrapped, adapters and all "
            "(module_inject/auto_tp.py, _replace_with_config)"
        )
    if job.kernels == "fused":
        return "Liger's fused head would read one rank's rows of a head that AutoTP splits"
    if config.stage == 3:
        return "ZeRO stage 3 spreads the weights over all ranks already; stages 0 to 2 go with AutoTP"
    if wrong_norm(config):
        return (
            "at stage 0 in 16 bits every optimizer but DeepSpeed's own Adam clips by the norm of the first "
            "rank's shard (runtime/fp16/unfused_optimizer.py:214, runtime/utils.py:575); use ZeRO stage 1"
        )
    return None


def wrong_norm(config: Config) -> bool:
    """Whether gradients are clipped by the norm of one rank's shard: FP16_UnfusedOptimizer.

    ``get_weight_norm`` is given gradients, which do not say that their parameter is split: a small Llama
    had a norm of 1.11 on two ranks where one had 1.37 (bf16, SGD).
    """
    if (
        config.stage
        or config.precision == "fp32"
        or not config.get("gradient_clipping", GRADIENT_CLIPPING_DEFAULT)
    ):
        return False
    fused = config.optimizer_type in ("adam", "adamw") and not config.optimizer_params.get("torch_adam")
    return not fused


class Split(NamedTuple):
    """How the modules of one class lie on the ``size`` ranks of a group."""

    size: int
    styles: Mapping[str, Style]
    """By the module's path; what is missing stands whole on every rank."""
    vocabulary_head: bool = False
    """Whether the head is tied to a split embedding: its logits stay split, and the loss is taken of them
    (sequence/cross_entropy.py)."""

    def portion(self, parameter: Parameter) -> Parameter:
        """What the first rank holds of it; no rank holds more."""
        style, shape = self.styles.get(parameter.module), parameter.shape
        if style == "row":
            shape = (shape[0], -(-shape[1] // self.size)) if len(shape) == 2 else shape
        elif style is not None:
            shape = (-(-shape[0] // self.size), *shape[1:])
        return parameter._replace(shape=shape)


@lru_cache(maxsize=64)
def split_of(model: Model, task: str, size: int) -> Split:
    """How AutoTP splits the class that ``task`` builds over ``size`` ranks."""
    styles: dict[str, Style] = {}
    tied = False
    for one in parameters(model, task):
        last, ending = one.module.rpartition(".")[2], ".".join(one.module.split(".")[-2:])
        inside = any(part.isdigit() for part in one.module.split("."))
        if inside and (last in _COLUMNS or ending in _COLUMNS):
            styles[one.module] = "column"
        elif inside and (last in _ROWS or ending in _ROWS):
            styles[one.module] = "row"
        elif last == "lm_head" and len(one.shape) == 2 and model.model_type in PLANNED - _WHOLE_HEAD:
            styles[one.module] = "gathered"
        elif last == "embed_tokens" and task == "causal-lm" and model.tied_embeddings:
            tied = model.model_type in PLANNED - _WHOLE_HEAD
            if tied:
                styles[one.module] = "vocabulary"
    return Split(size, styles, tied)


@lru_cache(maxsize=64)
def portions(model: Model, task: str, size: int) -> tuple[Parameter, ...]:
    """What the first rank of a tensor-parallel group of ``size`` holds, in the order of `parameters`."""
    split = split_of(model, task, size)
    return tuple(split.portion(one) for one in parameters(model, task))


def narrowed(model: Model, size: int) -> Model:
    """The model that one rank of ``size`` computes between a column's and a row's layer."""
    return replace(
        model,
        heads=model.heads // size,
        kv_heads=model.kv_heads // size,
        intermediate_size=model.intermediate_size // size,
    )
