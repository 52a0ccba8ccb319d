"""From hidden states to the loss: the heads and losses of transformers 5.17, by task.

Causal models take their loss in fp32 (``ForCausalLMLoss``); BERT's and T5's heads in the model's precision
(``CrossEntropyLoss`` on the logits as they are: modeling_bert.py:974, modeling_t5.py:1051).
"""

from __future__ import annotations

import math
from functools import partial

from trimtab.architecture import EAGER_ONLY
from trimtab.cost import decoders, encoders, tensor_parallel
from trimtab.cost import operators as ops
from trimtab.cost.backward import HELD
from trimtab.cost.machine import Tensor, Weight
from trimtab.cost.net import Net
from trimtab.errors import UnknownArchitecture, Unsupported, UsageError

_PREFIX = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "camembert": "roberta.",
    "electra": "electra.",
    "distilbert": "distilbert.",
}


def loss(net: Net) -> Tensor:
    """The whole forward pass of the job's task: one number, the loss.

    Raises:
        UnknownArchitecture: a combination that is not written here.
    """
    _refuse_flash(net)
    if net.job.lora is None:
        return _whole(net)
    return net.module(partial(net.module, partial(_whole, net)))  # peft's model, and its tuner


def _whole(net: Net) -> Tensor:
    # the whole model reads the head's weight where a fused loss replaces the head: an external parameter then
    # (partition_parameters.py, ZeROOrderedDict)
    fused = net.job.kernels == "fused" and net.job.task == "causal-lm"
    outer = (_head(net),) if fused else ()
    return net.module(partial(_loss, net), weights=outer)


def _refuse_flash(net: Net) -> None:
    """Flash attention where transformers 5.17 has none, or a class of its own for it."""
    kind = net.model.model_type
    if net.job.attention != "flash":
        return
    if kind in EAGER_ONLY or kind in ("falcon", "t5", "mt5"):
        raise UnknownArchitecture(
            f"{net.model.name}: flash attention of {kind} is not known to the arithmetic; use sdpa"
        )
    if net.item == ops.FLOAT:
        raise Unsupported(f"{net.model.name}: flash attention computes in bf16 or fp16; use sdpa in fp32")


def _loss(net: Net) -> Tensor:
    model = net.model
    if net.job.task == "question-answering" and model.kind != "causal" and model.labels != 2:
        raise UsageError(
            f"{model.name}: an answer has 2 labels, its start and its end, but the config names "
            f"{model.labels}: the run would end at its first batch. Take id2label and num_labels out of it"
        )
    if model.kind == "encoder-decoder":
        return _encoder_decoder(net)
    if model.kind == "encoder":
        return _encoder(net)
    hidden = decoders.body(net)
    if net.job.task == "causal-lm":
        return _causal(net, hidden)
    if net.job.task == "question-answering":
        return _classify_tokens(net, hidden, "qa_outputs")
    if net.job.task == "token-classification":
        hidden = net.dropout(hidden, model.classifier_dropout)
        return _classify_tokens(net, hidden, "score" if "score.weight" in net.weights else "classifier")
    return _classify_tokens(net, hidden, "score")


def _causal(net: Net, hidden: Tensor) -> Tensor:
    m, model = net.m, net.model
    if net.job.kernels == "fused":
        return _fused_linear_cross_entropy(net, hidden)
    with m.counted_as("logits and loss"):
        logits = _words(net, hidden)
        if net.split is not None and net.split.vocabulary_head:
            return tensor_parallel.cross_entropy(m, logits, net.batch, net.job.sequence_length)
        if model.model_type == "granite":  # logits_scaling
            logits = ops.scale(m, logits)
        if model.logit_softcap:
            logits = ops.scale(m, ops.tanh(m, ops.scale(m, logits)))
        return ops.cross_entropy(m, logits, fp32=True)


def _words(net: Net, hidden: Tensor) -> Tensor:
    """Logits over the vocabulary, by the head of its own or by the tied embedding."""
    if net.split is not None and net.split.vocabulary_head:
        return tensor_parallel.linear(net.m, hidden, _head(net), None, "column", net.split.size)
    return net.linear(hidden, "lm_head")


def _fused_linear_cross_entropy(net: Net, hidden: Tensor) -> Tensor:
    """Liger's fused head: logits in chunks, gradients made in the forward pass.

    liger_kernel/ops/fused_linear_cross_entropy.py: chunks of about hidden / vocabulary of the rows, their
    logits in the model's precision, a gradient of the input, and one of the weight, which every chunk reads
    and writes whole.
    """
    m, model = net.m, net.model
    rows = hidden.numel // model.hidden_size
    pieces = -(-model.vocab_size // model.hidden_size)
    chunk = 1 << (max(1, -(-rows // pieces)) - 1).bit_length()
    chunks = -(-rows // chunk)
    weight, width, words = _head(net), model.hidden_size, model.vocab_size
    products = [(chunk, width, words), (chunk, words, width)]
    with m.counted_as("logits and loss"):
        gradient = m.tensor(hidden.numel)
        weight_gradient = m.tensor(weight.numel) if weight.trainable else None
        m.tensor(chunk * words)
        kept = (gradient.storage,) + ((weight_gradient.storage,) if weight_gradient else ())
        if weight_gradient is not None:
            products.append((words, chunk, width))
            m.works("moving", weight.bytes, runs=chunks)  # what is added to is read
        for shape in products:
            flops = 2 * math.prod(shape)
            m.works("product", 0, flops, (1, *shape, hidden.item), runs=chunks)
        # the loss's kernel reads the logits twice and leaves their gradient in their place
        m.works("moving", 3 * chunk * words * hidden.item, runs=chunks)
        return m.op(
            1,
            (hidden, weight),
            (HELD, HELD - 1),
            item=ops.FLOAT,
            keep=kept,
            gathered=m.sharded,
        )


def _head(net: Net) -> Weight:
    """The weight of a causal model's output, its own or the tied embedding."""
    return net.weights["lm_head.weight"]


def _encoder(net: Net) -> Tensor:
    m, model, task = net.m, net.model, net.job.task
    prefix = _PREFIX[model.model_type]
    if task == "sequence-classification" and model.model_type == "bert":
        pooled = encoders.bert(net, prefix, partial(_pool, net))
        return _classify(net, net.dropout(pooled, model.classifier_dropout))
    hidden = encoders.bert(net, prefix)
    if task in ("masked-lm", "causal-lm"):
        return _predict_words(net, hidden)
    if task == "token-classification":
        return _classify_tokens(net, net.dropout(hidden, model.classifier_dropout), "classifier")
    if task == "question-answering":
        if model.model_type == "distilbert":
            hidden = net.dropout(hidden, float(model.hf["qa_dropout"]))
        return _classify_tokens(net, hidden, "qa_outputs")
    if model.model_type == "distilbert":
        first = net.linear(_first(net, hidden), "pre_classifier")
        first = ops.activation(m, first, "relu")
        return _classify(net, net.dropout(first, model.classifier_dropout))
    return ops.cross_entropy(m, net.module(partial(_classification_head, net), hidden), fp32=False)


def _first(net: Net, hidden: Tensor) -> Tensor:
    """Every sample's first token."""
    numel = net.batch * net.model.hidden_size
    return ops.cut(net.m, hidden, numel)


def _pool(net: Net, hidden: Tensor) -> Tensor:
    return net.activation(net.linear(_first(net, hidden), "bert.pooler.dense"), "tanh")


def _classification_head(net: Net, hidden: Tensor) -> Tensor:
    """RoBERTa's and ELECTRA's."""
    model = net.model
    first = net.dropout(_first(net, hidden), model.classifier_dropout)
    dense = net.linear(first, "classifier.dense")
    inner = net.activation(dense, "gelu") if model.model_type == "electra" else ops.tanh(net.m, dense)
    return net.linear(net.dropout(inner, model.classifier_dropout), "classifier.out_proj")


def _classify(net: Net, pooled: Tensor) -> Tensor:
    return ops.cross_entropy(net.m, net.linear(pooled, "classifier"), fp32=False)


def _predict_words(net: Net, hidden: Tensor) -> Tensor:
    """The language heads: dense, activation, norm, and the word embedding, tied or not, with a bias."""
    m, model = net.m, net.model
    with m.counted_as("logits and loss"):
        if model.model_type == "bert":
            logits = net.module(partial(net.module, partial(_bert_words, net), weights=_bias(net)), hidden)
        elif model.model_type == "electra":
            x = net.module(partial(_electra_predictions, net), hidden)
            logits = net.linear(x, "generator_lm_head")
        elif model.model_type == "distilbert":
            x = net.activation(net.linear(hidden, "vocab_transform"))
            logits = net.linear(net.norm(x, "vocab_layer_norm"), "vocab_projector")
        else:
            logits = net.module(partial(_roberta_words, net), hidden, weights=_bias(net))
        loss = partial(ops.cross_entropy, m, fp32=net.job.task == "causal-lm")
        return net.module(loss, logits) if model.model_type == "distilbert" else loss(logits)


def _bias(net: Net) -> tuple[Weight, ...]:
    """The bias of the words, a parameter of the module around the layer that adds it."""
    name = "cls.predictions.bias" if net.model.model_type == "bert" else "lm_head.bias"
    return (net.weights[name],)


def _bert_words(net: Net, hidden: Tensor) -> Tensor:
    return net.linear(net.module(partial(_bert_transform, net), hidden), "cls.predictions.decoder")


def _bert_transform(net: Net, hidden: Tensor) -> Tensor:
    path = "cls.predictions.transform"
    return net.norm(net.activation(net.linear(hidden, f"{path}.dense")), f"{path}.LayerNorm")


def _electra_predictions(net: Net, hidden: Tensor) -> Tensor:
    path = "generator_predictions"
    return net.norm(net.activation(net.linear(hidden, f"{path}.dense"), "gelu"), f"{path}.LayerNorm")


def _roberta_words(net: Net, hidden: Tensor) -> Tensor:
    inner = ops.activation(net.m, net.linear(hidden, "lm_head.dense"), "gelu")
    return net.linear(net.norm(inner, "lm_head.layer_norm"), "lm_head.decoder")


def _classify_tokens(net: Net, hidden: Tensor, head: str) -> Tensor:
    return ops.cross_entropy(net.m, net.linear(hidden, head), fp32=net.job.task == "token-classification")


def _encoder_decoder(net: Net) -> Tensor:
    m, model, task = net.m, net.model, net.job.task
    if task == "sequence-classification":
        raise UnknownArchitecture(
            f"{model.name}: what T5's sequence classification takes is not known before a run: its head "
            "picks the tokens that end a text. Choose another task"
        )
    if task == "token-classification":
        hidden = encoders.t5_encoder(net, "transformer.")
        return _classify_tokens(net, net.dropout(hidden, model.classifier_dropout), "classifier")
    x = encoders.t5(net)
    if task == "question-answering":
        return _classify_tokens(net, x, "qa_outputs")
    with m.counted_as("logits and loss"):
        logits = net.linear(ops.scale(m, x) if model.tied_embeddings else x, "lm_head")
        return ops.cross_entropy(m, logits, fp32=False)
