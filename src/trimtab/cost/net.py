"""A model on the counting machine: its weights by Hugging Face name, and the modules all families share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby

from trimtab.architecture import EAGER_ONLY
from trimtab.cost import attention as att
from trimtab.cost import operators as ops
from trimtab.cost import sequence_parallel, tensor_parallel
from trimtab.cost.backward import PASS, Summed
from trimtab.cost.machine import Machine, Tensor, Weight
from trimtab.cost.meter import Storage
from trimtab.job import Job
from trimtab.model import Model
from trimtab.parameters import Parameter
from trimtab.parameters.tensor_parallel import Split

INDEX_BYTES = 8
LORA = ".lora_A.default.weight"
RETURN_WEIGHTS = ("gptj", "gpt_neo", "bloom", "falcon")
"""Model types whose layers return attention's weights, which the model then holds (modeling_gptj.py:529)."""


CONCATENATES = ("phi", "phi3", "gpt_neox", "stablelm")
"""Model types that put what is rotated of a head beside the rest of it, though that be nothing."""


Tables = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Cosines, and sines; of each kind of layer."""
NO_TABLES: Tables = ((), ())


class Net:
    """What the families' forward passes are written against."""

    __slots__ = (
        "_recomputes", "attention_weights", "batch", "embedded", "fp16", "given", "job", "m", "model",
        "returned", "split", "spread", "tables", "to_recompute", "turned", "weights", "windowed",
    )  # fmt: skip

    def __init__(
        self,
        *,
        m: Machine,
        model: Model,
        job: Job,
        batch: int,
        weights: Mapping[str, Weight],
        fp16: bool = False,
        split: Split | None = None,
        spread: int = 1,
    ) -> None:
        self.m, self.model, self.job, self.batch = m, model, job, batch
        self.weights, self.fp16, self.split, self.spread = weights, fp16, split, spread
        self.to_recompute = job.recomputed_of(model.all_layers, model.name)
        """How many of the layers still to come are recomputed."""
        self._recomputes = False
        """Whether the layer that runs is one of them."""
        self.windowed = False
        """Whether it looks through a window that is no wider than the sequence."""
        self.turned = True
        """Whether it rotates queries and keys, if the model does."""
        self.embedded: Weight | None = None
        """The embedding that was read last."""
        self.given: tuple[Tensor, ...] = ()
        """What every layer is given beside its input: masks, cosines and sines."""
        self.tables = NO_TABLES
        """Cosines and sines of the positions, of each kind of layer."""
        self.attention_weights: Tensor | None = None
        """Of eager attention; a local of the layer, mostly ``_``, until it returns."""
        self.returned: Tensor | None = None
        """The same of the layer before, where the model holds on to it until the next layer returns."""

    @property
    def attention(self) -> str:
        """The implementation that runs: some classes have none but eager."""
        return "eager" if self.model.model_type in EAGER_ONLY else self.job.attention

    @property
    def tokens(self) -> int:
        """Tokens of the micro batch."""
        return self.batch * self.job.sequence_length

    @property
    def item(self) -> int:
        """Bytes of an activation element."""
        return self.m.item

    # -- modules ---------------------------------------------------------------------------------------

    def linear(self, x: Tensor, path: str) -> Tensor:
        """The linear layer at ``path``, with its LoRA branch if it has one (peft tuners/lora/layer.py)."""
        m, weights = self.m, self.weights
        if self.split is not None and path in self.split.styles:
            weight, bias = weights[path + ".weight"], weights.get(path + ".bias")
            return tensor_parallel.linear(m, x, weight, bias, self.split.styles[path], self.split.size)
        if path + LORA in weights:
            # it asks for lora_A's type: an external parameter then (partition_parameters.py, ZeROOrderedDict)
            return self.module(partial(self._adapted, path), x, weights=(weights[path + LORA],))
        return self._base(path, x)

    def _base(self, path: str, x: Tensor) -> Tensor:
        m, weight, bias = self.m, self.weights[path + ".weight"], self.weights.get(path + ".bias")
        if bias is not None and self.model.model_type == "falcon":  # FalconLinear
            return ops.add_bias(m, ops.linear(m, x, weight), bias)
        return ops.linear(m, x, weight, bias)

    def _adapted(self, path: str, x: Tensor) -> Tensor:
        m, weights = self.m, self.weights
        out = self._base(path + ".base_layer", x)
        assert self.job.lora is not None
        adapted = weights[path + LORA]
        rise = weights[path + ".lora_B.default.weight"]
        dropped = self.dropout(x, self.job.lora.lora_dropout)
        return ops.add(m, out, ops.scale(m, ops.linear(m, ops.linear(m, dropped, adapted), rise)))

    def norm(self, x: Tensor, path: str) -> Tensor:
        """The model's norm at ``path``."""
        m = self.m
        weight, bias = self.weights.get(path + ".weight"), self.weights.get(path + ".bias")
        if self.model.model_type == "olmo":
            return self.module(partial(ops.wide_layer_norm, m, width=self.model.hidden_size), x)
        if self.model.norm == "layer":
            if weight is None:
                return self.module(partial(ops.layer_norm, m, width=self.model.hidden_size), x)
            return ops.layer_norm(m, x, weight.numel, weight, bias)
        assert weight is not None
        if self.job.kernels == "fused":
            return ops.fused_rms_norm(m, x, weight)
        if self.model.family == "t5":
            return ops.t5_norm(m, x, weight)
        if self.model.family == "gemma":
            return ops.gemma_norm(m, x, weight)
        return ops.rms_norm(m, x, weight, wide_weight=self.model.model_type in ("olmo2", "olmo3"))

    def embedding(self, path: str, tokens: int, *, gathered: bool = False) -> Tensor:
        """Rows of the embedding at ``path``, which may be ``gathered`` for a module around it."""
        if self.split is not None and path in self.split.styles:
            return tensor_parallel.embedding(self.m, tokens, self.weights[path + ".weight"])
        return ops.embedding(self.m, tokens, self.weights[path + ".weight"], gathered=gathered)

    def words(self, path: str, tokens: int) -> Tensor:
        """Rows of the input's embedding, which recomputation makes to need a gradient where it is frozen.

        transformers/modeling_utils.py, ``enable_input_require_grads``: by a hook on that module.
        """
        weight = (self.weights[f"{path}.weight"],)
        if self.model.family == "gemma":  # a module of its own, Gemma's scaled embedding
            self.m.enter(weight)
            x = self.m.leave(ops.scale(self.m, self.embedding(path, tokens, gathered=True)), weight)
        else:
            x = self.embedding(path, tokens)
        if self.model.rotary_dim and self.model.model_type != "gptj":
            self._turn()
        if x.edge is None and self.job.checkpoint_activations:
            x = self.m.leaf(x, self.weights[path + ".weight"])
        return ops.scale(self.m, x) if self.model.model_type == "granite" else x

    def _turn(self) -> None:
        """The model's ``rotary_emb``: angles by a small product of its own, and what is looked up of them."""
        self.m.enter()
        self.m.meter.product()
        numel, kinds = self.job.sequence_length * self.model.rotary_dim, 1
        if self.model.model_type in ("gemma3_text", "olmo3"):
            kinds = 2
        cosines, sines = (
            tuple(self.m.tensor(numel, self._table_item) for _ in range(kinds)) for _ in range(2)
        )
        self.tables = cosines, sines

    @property
    def _table_item(self) -> int:
        """OLMo's stay in fp32, and so does what is turned by them (models/olmo/modeling_olmo.py)."""
        return ops.FLOAT if self.model.family == "olmo" else self.item

    def activation(self, x: Tensor, name: str | None = None) -> Tensor:
        """The model's activation."""
        self.m.enter()
        return self.m.leave(ops.activation(self.m, x, name or self.model.activation))

    def gated(self, x: Tensor, gate: str, up: str) -> Tensor:
        """``act(gate(x)) * up(x)``; Liger's fused form keeps both inputs and nothing else."""
        m = self.m
        if self.job.kernels == "fused" and self.model.activation == "silu":
            a, b = self.linear(x, gate), self.linear(x, up)
            return m.op(a.numel, (a, b), (-1, -1), item=a.item, keep=(a.storage, b.storage))
        return ops.mul(m, self.activation(self.linear(x, gate)), self.linear(x, up))

    def rotary(self, q: Tensor, k: Tensor, rotated: float = 1.0) -> tuple[Tensor, Tensor]:
        """``(x * cos) + (rotate_half(x) * sin)`` on a share of each head, and the rest beside it again."""
        if not self.turned:
            return q, k
        (q, *_), (k, *_) = self.rotary_parts((q, k), rotated)
        return q, k

    def rotary_parts(
        self, tensors: Sequence[Tensor], rotated: float, tables: Callable[[], Tables] | None = None
    ) -> list[tuple[Tensor, ...]]:
        """The same, each with what it was made of: names where attention's forward rotates itself.

        ``tables`` makes cosines and sines for each of ``tensors`` anew.
        """
        m = self.m
        if self.job.kernels == "fused":  # liger_kernel/ops/rope.py works in place
            keep = tuple(table.storage for kind in self.tables for table in kind)
            return [(m.op(x.numel, (x,), (PASS,), item=x.item, keep=keep),) for x in tensors]
        if rotated >= 1.0 and self.model.model_type not in CONCATENATES:
            return [(self._turned(x),) for x in tensors]
        turned, rest = [], []
        for x in tensors:
            count = int(x.numel * rotated)
            turned.append(ops.cut(m, x, count))
            rest.append(ops.cut(m, x, x.numel - count))
        for place, part in enumerate(turned):
            if tables is not None:
                self.tables = tables()
            turned[place] = self._turned(part)
        if tables is not None:
            self.tables = NO_TABLES
        return [
            (m.op(x.numel, (out, other), (PASS, PASS), item=x.item), out, x)
            for out, other, x in zip(turned, rest, tensors, strict=True)
        ]

    def by_head(self, x: Tensor) -> Tensor:
        """A projection that is rotated head by head, where that is not done in place."""
        if not self.turned or self.job.kernels == "fused":
            return x
        return ops.by_head(self.m, x)

    def _turned(self, x: Tensor) -> Tensor:
        m, wide = self.m, max(x.item, self._table_item)
        cosines, sines = (tuple(table.storage for table in kind) for kind in self.tables)

        def times(x: Tensor, table: tuple[Storage, ...]) -> Tensor:
            # repeated for every head, and heads lie beside each other until they are turned
            return m.op(
                x.numel,
                (x,),
                (Summed(x.numel * wide, x.bytes, kernel="to bf16") if wide > x.item else x.bytes,),
                item=wide,
                keep=table,
                kernel=ops.LOOKED_UP,
                shape=(x.numel,),
            )

        straight = times(x, cosines)
        added = ops.add(m, straight, times(self._rotate_half(x), sines), kernel=ops.LOOKED_UP)
        return ops.cast(m, added, x.item)

    def _rotate_half(self, x: Tensor) -> Tensor:
        m, half = self.m, x.numel // 2
        first, second = ops.cut(m, x, half), ops.cut(m, x, half)
        negative = m.op(half, (second,), (second.bytes,), item=x.item, kernel=ops.LOOKED_UP, shape=(half,))
        return m.op(x.numel, (negative, first), (PASS, PASS), item=x.item)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, shape: att.Shape, *, masked: bool = True) -> Tensor:
        """Attention without a trained bias, by the job's implementation."""
        if self.spread > 1:
            return self._attend_spread(q, k, v, shape)
        return self._attend(q, k, v, shape, masked=masked)

    def _attend_spread(self, q: Tensor, k: Tensor, v: Tensor, shape: att.Shape) -> Tensor:
        m, size, batch = self.m, self.spread, shape.batch
        places = sequence_parallel.gathered_places(m, batch * shape.queries, size)
        q = sequence_parallel.to_heads(m, q, shape.heads, batch, size)
        k = sequence_parallel.to_heads(m, k, shape.kv_heads, batch, size)
        v = sequence_parallel.to_heads(m, v, shape.kv_heads, batch, size)
        out = self._attend(q, k, v, sequence_parallel.whole_shape(shape, size), masked=True)
        out = sequence_parallel.to_tokens(m, out, batch)
        del places
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shape: att.Shape, *, masked: bool) -> Tensor:
        m, unseen = self.m, "v" if self.turned and self.model.rotary_dim else "qkv"
        if self.attention == "eager":
            wide = None if self.model.model_type == "gpt2" or self.model.kind == "encoder" else ops.FLOAT
            out, self.attention_weights = att.eager(
                m,
                q,
                k,
                v,
                shape,
                softmax_item=wide,
                mask=masked,
                softcap=self.model.attention_softcap,
                unseen=unseen,
            )
            return out
        if self.windowed:
            return att.masked(m, q, k, v, shape)
        if self.item == ops.FLOAT and shape.kv_heads != shape.heads:
            return att.plain(m, q, k, v, shape, unseen=unseen)  # no fused kernel shares keys in fp32
        if self.item == ops.FLOAT or shape.head_dim > att.FLASH_HEAD_LIMIT:
            return att.efficient(m, q, k, v, shape)
        if shape.head_dim % att.HEAD_ALIGNMENT and self.attention == "sdpa":
            return att.padded_flash(m, q, k, v, shape)
        out = att.flash(m, q, k, v, shape)
        return ops.copy(m, out) if shape.by_head else out

    def layers(self, path: str, count: int | None = None) -> Iterator[str]:
        """The paths of the layers to be run of the stack of ``count`` (default: the model's) at ``path``."""
        count = self.model.layers if count is None else count
        recomputed = min(count, self.to_recompute)
        self.to_recompute -= recomputed
        for self._recomputes, start, stop in ((True, 0, recomputed), (False, recomputed, count)):
            for (windowed, turned), first, end in self._alike(start, stop):
                for index in self.m.meter.layers(path, first, end):
                    self.windowed, self.turned = windowed, turned
                    yield f"{path}.{index}"

    def _alike(self, start: int, stop: int) -> Iterator[tuple[tuple[bool, bool], int, int]]:
        """Runs of layers whose attention is the same: through a window or not, rotating or not."""
        sliding = frozenset(self.model.sliding_layers) if self.looks_through_window else frozenset()
        unturned = frozenset(self.model.unturned_layers)
        for kind, run in groupby(range(start, stop), key=lambda at: (at in sliding, at not in unturned)):
            first, *rest = run
            yield kind, first, (rest[-1] if rest else first) + 1

    @property
    def looks_through_window(self) -> bool:
        """Whether a mask says what lies inside the window: of sdpa, and no wider than the sequence
        (masking_utils.py, ``_ignore_causal_mask_sdpa``)."""
        window = self.model.sliding_window
        return self.attention == "sdpa" and window is not None and self.job.sequence_length >= window

    def layer(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """One transformer layer, recomputed in the backward pass if the job says so."""
        if not self._recomputes:
            return self._whole(run, x)
        windowed, turned, tables = self.windowed, self.turned, self.tables

        def again(x: Tensor, *_: Tensor) -> Tensor:
            self.windowed, self.turned, self.tables = windowed, turned, tables
            try:
                return self._whole(run, x)
            finally:  # also where no more is wanted of it
                if self.m.recomputing:
                    self.tables = NO_TABLES

        return self.m.checkpoint(again, x, *self.given)

    def _whole(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        try:
            return self.module(run, x)
        finally:
            weights, self.attention_weights = self.attention_weights, None
            if self.model.model_type in RETURN_WEIGHTS and not self.m.recomputing:
                self.returned = weights

    def module(
        self,
        run: Callable[..., Tensor],
        *arguments: Tensor,
        weights: tuple[Weight, ...] = (),
        positional: bool = False,
    ) -> Tensor:
        """``run(*arguments)`` as a module.

        ``weights``: parameters of its own that it does not read itself.  ``positional`` if its arguments have
        no names: stage 3 then has a hook on each, where their gradients are summed.
        """
        m = self.m
        m.enter(weights)
        if positional and m.sharded:
            arguments = tuple(m.op(x.numel, (x,), (PASS,), item=x.item, view_of=x) for x in arguments)
        return m.leave(run(*arguments), weights)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """An ``nn.Dropout`` module."""
        self.m.enter()
        return self.m.leave(ops.dropout(self.m, x, probability))


def weights_of(parameters: Iterable[Parameter], item: int, model_type: str) -> tuple[Weight, ...]:
    """The machine's weights for ``parameters``, in their order; ``item`` bytes an element."""
    own_products = model_type in ("gpt2", "falcon")
    weights = []
    for index, one in enumerate(parameters):
        written_out = own_products and len(one.shape) == 2 and ".h." in one.name and "lora_" not in one.name
        upright = written_out and model_type == "gpt2"
        columns = one.shape[0 if upright else -1]
        weights.append(Weight(one.name, one.numel, item, index, columns, one.trainable, written_out, upright))
    return tuple(weights)
