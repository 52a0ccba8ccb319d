"""Encoders: bert, roberta and its kin, distilbert and electra, with their task heads.

Registration orders as in transformers 5.17's modeling files of each model type.
"""

from __future__ import annotations

from trimtab.errors import UsageError
from trimtab.model import Model
from trimtab.parameters.modules import Module, Skeleton, embedding, layer_norm, linear, own, stack, under

MODEL_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"})
ROBERTAS = frozenset({"roberta", "xlm-roberta", "camembert"})
"""One architecture under three names, whose modules are all called ``roberta``."""

_LANGUAGE_TASKS = ("causal-lm", "masked-lm")


def skeleton(model: Model, task: str) -> Skeleton:
    """Encoder and head of the class that ``task`` builds."""
    kind = model.model_type
    prefix = "roberta" if kind in ROBERTAS else kind
    body = _distilbert(model) if kind == "distilbert" else _bert(model, pooled=_pooled(kind, task))
    encoder = under(prefix, body)
    if task in _LANGUAGE_TASKS:
        head, output, ties = _language_head(model, f"{prefix}.embeddings.word_embeddings.weight")
    else:
        head, output, ties = _task_head(model, task), None, []
    # XLMRobertaFor… and CamembertFor… register their heads first, the others their encoder.
    modules = head + encoder if kind in ("xlm-roberta", "camembert") else encoder + head
    return Skeleton(modules, ties if model.tied_embeddings else (), output)


def _pooled(kind: str, task: str) -> bool:
    return kind == "bert" and task == "sequence-classification"


def _bert(model: Model, *, pooled: bool) -> list[Module]:
    hidden, inner, width = model.hidden_size, model.intermediate_size, model.embedding_size
    words = embedding("embeddings.word_embeddings", model.vocab_size, width)
    positions = embedding("embeddings.position_embeddings", model.max_positions, width)
    types = embedding("embeddings.token_type_embeddings", model.type_vocab_size, width)
    norm = layer_norm("embeddings.LayerNorm", width)
    roberta = model.model_type in ROBERTAS
    modules = [words, types, norm, positions] if roberta else [words, positions, types, norm]
    if model.model_type == "electra" and width != hidden:
        modules.append(linear("embeddings_project", width, hidden, True))
    modules += stack(
        "encoder.layer",
        model.layers,
        [
            *(linear(f"attention.self.{name}", hidden, hidden, True) for name in ("query", "key", "value")),
            linear("attention.output.dense", hidden, hidden, True),
            layer_norm("attention.output.LayerNorm", hidden),
            linear("intermediate.dense", hidden, inner, True),
            linear("output.dense", inner, hidden, True),
            layer_norm("output.LayerNorm", hidden),
        ],
    )
    return [*modules, linear("pooler.dense", hidden, hidden, True)] if pooled else modules


def _distilbert(model: Model) -> list[Module]:
    hidden, inner = model.hidden_size, model.intermediate_size
    return [
        embedding("embeddings.word_embeddings", model.vocab_size, hidden),
        embedding("embeddings.position_embeddings", model.max_positions, hidden),
        layer_norm("embeddings.LayerNorm", hidden),
        *stack(
            "transformer.layer",
            model.layers,
            [
                *(linear(f"attention.{name}_lin", hidden, hidden, True) for name in ("q", "k", "v", "out")),
                layer_norm("sa_layer_norm", hidden),
                linear("ffn.lin1", hidden, inner, True),
                linear("ffn.lin2", inner, hidden, True),
                layer_norm("output_layer_norm", hidden),
            ],
        ),
    ]


def _language_head(model: Model, words: str) -> tuple[list[Module], str, list[tuple[str, str]]]:
    """Head, path of the output embedding, and the ties of its weight and bias."""
    hidden, vocab, kind = model.hidden_size, model.vocab_size, model.model_type
    if kind == "bert":
        return (
            [
                own("cls.predictions", "bias", (vocab,)),
                linear("cls.predictions.transform.dense", hidden, hidden, True),
                layer_norm("cls.predictions.transform.LayerNorm", hidden),
                linear("cls.predictions.decoder", hidden, vocab, True),
            ],
            "cls.predictions.decoder",
            [
                ("cls.predictions.decoder.weight", words),
                ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ],
        )
    if kind == "distilbert":
        return (
            [
                linear("vocab_transform", hidden, hidden, True),
                layer_norm("vocab_layer_norm", hidden),
                linear("vocab_projector", hidden, vocab, True),
            ],
            "vocab_projector",
            [("vocab_projector.weight", words)],
        )
    if kind == "electra":
        return (
            [
                layer_norm("generator_predictions.LayerNorm", model.embedding_size),
                linear("generator_predictions.dense", hidden, model.embedding_size, True),
                linear("generator_lm_head", model.embedding_size, vocab, True),
            ],
            "generator_lm_head",
            [("generator_lm_head.weight", words)],
        )
    return (
        [
            own("lm_head", "bias", (vocab,)),
            linear("lm_head.dense", hidden, hidden, True),
            layer_norm("lm_head.layer_norm", hidden),
            linear("lm_head.decoder", hidden, vocab, True),
        ],
        "lm_head.decoder",
        [("lm_head.decoder.weight", words), ("lm_head.decoder.bias", "lm_head.bias")],
    )


def _task_head(model: Model, task: str) -> list[Module]:
    hidden, labels = model.hidden_size, model.labels
    if task == "question-answering":
        if labels != 2 and model.model_type == "distilbert":
            raise UsageError(f"{model.name}: DistilBertForQuestionAnswering takes 2 labels, not {labels}.")
        return [linear("qa_outputs", hidden, labels, True)]
    if task == "sequence-classification" and model.model_type == "distilbert":
        return [
            linear("pre_classifier", hidden, hidden, True),
            linear("classifier", hidden, labels, True),
        ]
    if task == "sequence-classification" and model.model_type != "bert":
        return [
            linear("classifier.dense", hidden, hidden, True),
            linear("classifier.out_proj", hidden, labels, True),
        ]
    return [linear("classifier", hidden, labels, True)]
