"""The forward passes of the encoders (BERT, RoBERTa and kin) and of T5, as transformers 5.17 writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trimtab.cost import attention as att
from trimtab.cost import operators as ops
from trimtab.cost.machine import Tensor
from trimtab.cost.net import INDEX_BYTES, Net

BERTS = frozenset(("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"))


def bert(net: Net, prefix: str, pooler: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What an encoder whose modules start at ``prefix`` (``"bert."``) gives: its last hidden states.

    With ``pooler``, a module of its own, what that makes of them.
    """
    return net.module(partial(_bert_model, net, prefix, pooler))


def _bert_model(net: Net, prefix: str, pooler: Callable[[Tensor], Tensor] | None) -> Tensor:
    x = net.module(partial(_bert_embeddings, net, f"{prefix}embeddings"))
    if f"{prefix}embeddings_project.weight" in net.weights:
        x = net.linear(x, f"{prefix}embeddings_project")
    x = net.module(partial(_bert_layers, net, prefix), x)
    return x if pooler is None else net.module(pooler, x)


def _bert_embeddings(net: Net, path: str) -> Tensor:
    m, model = net.m, net.model
    tokens = net.batch * net.job.sequence_length
    words = net.words(f"{path}.word_embeddings", tokens)
    x = words
    if f"{path}.token_type_embeddings.weight" in net.weights:
        x = ops.add(m, words, net.embedding(f"{path}.token_type_embeddings", tokens))
    x = ops.add(m, x, net.embedding(f"{path}.position_embeddings", net.job.sequence_length))
    del words
    return net.dropout(net.norm(x, f"{path}.LayerNorm"), model.embedding_dropout)


def _bert_layers(net: Net, prefix: str, x: Tensor) -> Tensor:
    layer: Callable[[Net, str, Tensor], Tensor] = _bert_layer
    where = f"{prefix}encoder.layer"
    if net.model.model_type == "distilbert":
        layer, where = _distilbert_layer, f"{prefix}transformer.layer"
    for path in net.layers(where):
        x = net.layer(partial(layer, net, path), x)
    return x


def _bert_shape(net: Net) -> att.Shape:
    model, length = net.model, net.job.sequence_length
    return att.Shape(
        batch=net.batch,
        heads=model.heads,
        kv_heads=model.heads,
        queries=length,
        keys=length,
        head_dim=model.head_dim,
        dropout=model.attention_dropout,
        causal=False,
    )


def _bert_layer(net: Net, path: str, x: Tensor) -> Tensor:
    x = net.module(partial(_bert_attention, net, f"{path}.attention"), x, positional=True)
    inner = net.module(partial(_bert_intermediate, net, f"{path}.intermediate"), x, positional=True)
    return net.module(partial(_bert_output, net, f"{path}.output"), inner, x, positional=True)


def _bert_attention(net: Net, path: str, x: Tensor) -> Tensor:
    attended = net.module(partial(_bert_self_attention, net, f"{path}.self"), x, positional=True)
    return net.module(partial(_bert_output, net, f"{path}.output"), attended, x, positional=True)


def _bert_self_attention(net: Net, path: str, x: Tensor) -> Tensor:
    q, k, v = (net.linear(x, f"{path}.{name}") for name in ("query", "key", "value"))
    return net.attend(q, k, v, _bert_shape(net), masked=False)


def _bert_intermediate(net: Net, path: str, x: Tensor) -> Tensor:
    return net.activation(net.linear(x, f"{path}.dense"))


def _bert_output(net: Net, path: str, x: Tensor, residual: Tensor) -> Tensor:
    out = net.dropout(net.linear(x, f"{path}.dense"), net.model.residual_dropout)
    return net.norm(ops.add(net.m, out, residual), f"{path}.LayerNorm")


def _distilbert_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m = net.m
    out = net.module(partial(_distilbert_attention, net, f"{path}.attention"), x, positional=True)
    x = net.norm(ops.add(m, out, x), f"{path}.sa_layer_norm")
    del out
    out = net.module(partial(_distilbert_feed_forward, net, f"{path}.ffn"), x, positional=True)
    return net.norm(ops.add(m, out, x), f"{path}.output_layer_norm")


def _distilbert_attention(net: Net, path: str, x: Tensor) -> Tensor:
    q, k, v = (net.linear(x, f"{path}.{name}_lin") for name in "qkv")
    return net.linear(net.attend(q, k, v, _bert_shape(net), masked=False), f"{path}.out_lin")


def _distilbert_feed_forward(net: Net, path: str, x: Tensor) -> Tensor:
    inner = net.activation(net.linear(x, f"{path}.lin1"))
    return net.dropout(net.linear(inner, f"{path}.lin2"), net.model.residual_dropout)


# -- T5: models/t5 -------------------------------------------------------------------------------------


def t5(net: Net) -> Tensor:
    """The decoder's last hidden states; elements batch x target_length x width."""
    length = net.job.sequence_length
    target = net.job.target_length or length  # the question answerer's decoder reads the input again
    return _Stack(net, "", "decoder", target, length, t5_encoder(net)).run()


def t5_encoder(net: Net, prefix: str = "") -> Tensor:
    """The encoder's last hidden states, of a model whose stacks start at ``prefix``."""
    length = net.job.sequence_length
    return _Stack(net, prefix, "encoder", length, length, None).run()


class _Stack:
    """One of T5's two stacks; the position biases are made by the first block and shared by all."""

    def __init__(
        self, net: Net, prefix: str, name: str, queries: int, source: int, encoded: Tensor | None
    ) -> None:
        self.net, self.words, self.name = net, f"{prefix}shared", f"{prefix}{name}"
        self.queries, self.source, self.encoded = queries, source, encoded
        self.bias: Tensor | None = None
        self.cross_bias: Tensor | None = None
        self.recomputed = net.to_recompute
        """How many of its blocks, if it has as many."""

    def run(self) -> Tensor:
        net, model = self.net, self.net.model
        net.m.enter()
        embedded = net.words(self.words, net.batch * self.queries)  # a local of T5Stack.forward
        x = net.dropout(embedded, model.residual_dropout)
        layers = model.layers if self.encoded is None else model.decoder_layers
        for path in net.layers(f"{self.name}.block", layers):
            x = net.layer(partial(self._block, path), x)
        if self.recomputed < 2:
            self.bias = self.cross_bias = None  # what the first block is recomputed from does not hold them
        x = net.norm(x, f"{self.name}.final_layer_norm")
        return net.m.leave(net.dropout(x, model.residual_dropout))

    def _block(self, path: str, x: Tensor) -> Tensor:
        again = path.endswith(".block.0") and self.net.m.recomputing
        if again:  # the blocks that were given the forward pass's biases are done
            self.bias = self.cross_bias = None
        try:
            return self._layers(path, x)
        finally:
            if again:
                self.bias = self.cross_bias = None

    def _layers(self, path: str, x: Tensor) -> Tensor:
        module = self.net.module
        x = self._clamp(module(partial(self._attention, f"{path}.layer.0", "SelfAttention", None), x))
        if self.encoded is not None:
            cross = partial(self._attention, f"{path}.layer.1", "EncDecAttention", self.encoded)
            x = self._clamp(module(cross, x))
        last = 1 if self.encoded is None else 2
        return self._clamp(module(partial(self._feed_forward, f"{path}.layer.{last}"), x))

    def _clamp(self, x: Tensor) -> Tensor:
        if not self.net.fp16:
            return x
        m = self.net.m
        m.tensor(x.numel, 1)  # isinf
        return m.op(x.numel, (x,), (x.bytes,), item=x.item, keep=(x.storage,))

    def _attention(self, path: str, name: str, other: Tensor | None, x: Tensor) -> Tensor:
        net = self.net
        normed = net.norm(x, f"{path}.layer_norm")
        out = net.module(partial(self._inner, path, name, other), normed)
        del normed
        return ops.add(net.m, x, net.dropout(out, net.model.residual_dropout))

    def _inner(self, path: str, name: str, other: Tensor | None, normed: Tensor) -> Tensor:
        net, model = self.net, self.net.model
        copies = other is None or net.job.attention == "eager"  # what comes back head by head
        read = {"q": normed, "k": normed if other is None else other, "v": normed if other is None else other}
        projected = (net.linear(x, f"{path}.{name}.{letter}") for letter, x in read.items())
        q, k, v = (ops.by_head(net.m, one) if copies else one for one in projected)
        keys = self.queries if other is None else self.source
        shape = att.Shape(
            batch=net.batch,
            heads=model.heads,
            kv_heads=model.heads,
            queries=self.queries,
            keys=keys,
            head_dim=model.head_dim,
            dropout=model.attention_dropout,
            causal=False,
        )
        out = self._attend(q, k, v, shape, cross=other is not None, path=path)
        return net.linear(out, f"{path}.{name}.o")

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shape: att.Shape, *, cross: bool, path: str) -> Tensor:
        net, m = self.net, self.net.m
        bias = self._bias(shape, cross=cross, path=path)
        causal = self.encoded is not None and not cross
        if net.job.attention == "eager":
            return att.eager(m, q, k, v, shape, bias=bias, mask=causal, unseen="")[0]
        if cross:  # zeros, contiguous
            return att.biased(m, q, k, v, shape, bias)
        if (
            causal
        ):  # create_position_bias_mask: torch.where(causal, bias, minimum), with the strides of the bias
            bias = m.op(bias.numel, (bias,), (bias.bytes,), item=bias.item)
        return att.plain(m, q, k, v, shape, bias, unseen="")

    def _bias(self, shape: att.Shape, *, cross: bool, path: str) -> Tensor:
        """The position bias [1, heads, queries, keys]: the first block's, shared by all."""
        known = self.cross_bias if cross else self.bias
        if known is not None and not path.startswith(f"{self.name}.block.0."):
            return known
        net, m = self.net, self.net.m
        numel = shape.heads * shape.queries * shape.keys
        if cross:
            made = m.tensor(numel)
            if self.recomputed > 0:
                made = m.leaf(made)
            self.cross_bias = (
                None if m.recomputing else made
            )  # the blocks that were given it are done by then
            return made
        weight = net.weights[f"{path}.SelfAttention.relative_attention_bias.weight"]
        buckets = m.tensor(shape.queries * shape.keys, INDEX_BYTES)
        self.bias = m.op(numel, (weight,), (weight.bytes,), item=weight.item, keep=(buckets.storage,))
        return self.bias

    def _feed_forward(self, path: str, x: Tensor) -> Tensor:
        net, m, model = self.net, self.net.m, self.net.model
        out = net.module(partial(self._dense, f"{path}.DenseReluDense"), net.norm(x, f"{path}.layer_norm"))
        return ops.add(m, x, net.dropout(out, model.residual_dropout))

    def _dense(self, path: str, x: Tensor) -> Tensor:
        net, model = self.net, self.net.model
        if model.gated_mlp:
            inner = net.gated(x, f"{path}.wi_0", f"{path}.wi_1")
        else:
            inner = net.activation(net.linear(x, f"{path}.wi"))
        return net.linear(net.dropout(inner, model.mlp_dropout), f"{path}.wo")
