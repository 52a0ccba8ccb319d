"""The lists equal, name by name and in order, what transformers and peft build on the meta device."""

from __future__ import annotations

from itertools import compress
from typing import Any

import pytest
from config_shapes import SHAPES, Config

from trimtab.errors import UsageError
from trimtab.hf_config import class_defaults, known_model_types, lora_targets
from trimtab.job import Lora
from trimtab.model import Model, catalogue, find_model
from trimtab.parameters import buffers, parameters, tasks_of

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
}
PEFT_TASKS = {
    "causal-lm": "CAUSAL_LM",
    "masked-lm": None,
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}


def build(model_type: str, fields: Config, task: str) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        return getattr(transformers, AUTO_CLASSES[task]).from_config(config)


def model_of(model_type: str, fields: Config) -> Model:
    return Model.from_hf({"model_type": model_type, **fields})


def test_shapes_cover_every_known_model_type() -> None:
    assert set(SHAPES) == set(known_model_types())


@pytest.mark.parametrize("model_type", SHAPES)
def test_the_tasks_are_those_that_transformers_has_a_class_for(model_type: str) -> None:
    config = type(transformers.AutoConfig.for_model(model_type))
    mappings = {
        task: getattr(transformers, auto)._model_mapping.keys() for task, auto in AUTO_CLASSES.items()
    }
    expected = {task for task, configs in mappings.items() if config in configs}
    assert set(tasks_of(model_of(model_type, SHAPES[model_type][0]))) - {"span-corruption"} == expected


@pytest.mark.parametrize("model_type", SHAPES)
def test_lists_equal_the_class(model_type: str) -> None:
    for fields in SHAPES[model_type]:
        model = model_of(model_type, fields)
        for task in set(tasks_of(model)) & set(AUTO_CLASSES):
            real = build(model_type, fields, task)
            expected = [(name, tuple(tensor.shape)) for name, tensor in real.named_parameters()]
            assert [(p.name, p.shape) for p in parameters(model, task)] == expected, (fields, task)
            modules = dict(real.named_modules())
            assert all(p.module in modules for p in parameters(model, task))
            tables = {(n, tuple(b.shape), str(b.dtype)[6:]) for n, b in real.named_buffers()}
            assert {(b.name, b.shape, b.dtype) for b in buffers(model, task)} == tables, (fields, task)


@pytest.mark.parametrize("model_type", SHAPES)
def test_figures_equal_the_config_object(model_type: str) -> None:
    for fields in SHAPES[model_type]:
        config, model = transformers.AutoConfig.for_model(model_type, **fields), model_of(model_type, fields)
        assert model.hidden_size == config.hidden_size
        assert model.layers == config.num_hidden_layers
        assert model.heads == config.num_attention_heads
        assert model.vocab_size == config.vocab_size
        assert model.labels == config.num_labels
        assert model.tied_embeddings == config.tie_word_embeddings
        if model_type not in ("falcon",) and hasattr(config, "num_key_value_heads"):
            assert model.kv_heads == config.num_key_value_heads
        if isinstance(getattr(config, "layer_types", None), list):
            sliding = [kind == "sliding_attention" for kind in config.layer_types]
            assert model.sliding_layers == tuple(compress(range(model.layers), sliding))


def test_shipped_defaults_are_those_of_the_classes() -> None:
    for model_type in known_model_types():
        config = transformers.AutoConfig.for_model(model_type)
        declared = type(config).__dataclass_fields__
        for name, value in class_defaults(model_type).items():
            if name in declared:
                assert declared[name].default == value, (model_type, name)


@pytest.mark.parametrize("name", catalogue())
def test_catalogue_totals_equal_the_class(name: str) -> None:
    row, model = catalogue()[name], find_model(name)
    fields = {key: value for key, value in row["hf"].items() if key != "model_type"}
    task = tasks_of(model)[0]
    real = build(row["hf"]["model_type"], fields, task)
    assert sum(p.numel for p in parameters(model, task)) == sum(p.numel() for p in real.parameters())


def loras(model: Model, task: str) -> list[Lora]:
    """Defaults, every linear layer, an embedding, and modules kept whole."""
    found = (
        []
        if task in ("token-classification", "question-answering")
        else [Lora(r=4, target_modules=("all-linear",))]
    )
    if model.model_type == "distilbert" and task == "sequence-classification":
        found = []
    targets = lora_targets(model.model_type)
    if targets:
        found.append(Lora(r=4))
    words = {"gpt2": "wte", "bert": "word_embeddings", "llama": "embed_tokens", "gemma": "embed_tokens"}
    if model.model_type in words:
        found.append(Lora(r=3, target_modules=(words[model.model_type], *(targets or ()))))
    if model.model_type in ("llama", "qwen2", "gemma") and task == "causal-lm":
        found.append(Lora(r=2, modules_to_save=("lm_head", "embed_tokens")))
        found.append(Lora(r=2, modules_to_save=("norm",)))
    if model.model_type == "llama" and task == "causal-lm":
        found.append(Lora(r=2, target_modules=("lm_head", "q_proj")))
    return found


@pytest.mark.parametrize("model_type", SHAPES)
def test_lora_lists_equal_peft(model_type: str) -> None:
    peft = pytest.importorskip("peft")
    for fields in SHAPES[model_type][:3]:
        model = model_of(model_type, fields)
        for task in set(tasks_of(model)) & set(AUTO_CLASSES):
            for lora in loras(model, task):
                names = lora.target_modules
                config = peft.LoraConfig(
                    r=lora.r,
                    target_modules="all-linear" if names == ("all-linear",) else names and list(names),
                    modules_to_save=list(lora.modules_to_save) or None,
                    task_type=PEFT_TASKS[task],
                    init_lora_weights=False,
                )
                real = build(model_type, fields, task)
                with torch.device("meta"):
                    real = peft.get_peft_model(real, config)
                expected = [(n, tuple(p.shape), p.requires_grad) for n, p in real.named_parameters()]
                got = [(p.name, p.shape, p.trainable) for p in parameters(model, task, lora)]
                assert got == expected, (fields, task, lora)


def test_what_peft_refuses_is_refused() -> None:
    peft = pytest.importorskip("peft")
    fields = SHAPES["bert"][0]
    config = peft.LoraConfig(target_modules="all-linear", task_type="TOKEN_CLS")
    with pytest.raises(TypeError, match="modules_to_save"):
        peft.get_peft_model(build("bert", fields, "token-classification"), config)
    with pytest.raises(UsageError, match="peft refuses"):
        parameters(model_of("bert", fields), "token-classification", Lora(target_modules=("all-linear",)))
