"""A model on the counting machine: its weights by Hugging Face name, and the modules all families share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby

from trimtab.architecture import EAGER_ONLY
from trimtab.cost import attention as att
from trimtab.cost import operators as ops
from trimtab.cost import sequence_parallel, tensor_parallel
from trimtab.cost.backward import PASS
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


NO_TABLES: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())


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
            return self.module(partial(self._adapted, path), x)
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
            return self.module(partial(ops.wide_layer_norm, m), x)
        if self.model.norm == "layer":
            return ops.layer_norm(m, x, weight, bias)
        assert weight is not None
        if self.job.kernels == "fused":
            return ops.fused_rms_norm(m, x, weight)
        if self.model.family == "t5":
            return ops.t5_norm(m, x, weight)
        if self.model.family == "gemma":
            return ops.gemma_norm(m, x, weight)
        return ops.rms_norm(m, x, weight, wide_weight=self.model.model_type == "olmo2")

    def embedding(self, path: str, tokens: int) -> Tensor:
        """Rows of the embedding at ``path``."""
        if self.split is not None and path in self.split.styles:
            return tensor_parallel.embedding(self.m, tokens, self.weights[path + ".weight"])
        return ops.embedding(self.m, tokens, self.weights[path + ".weight"])

    def words(self, path: str, tokens: int) -> Tensor:
        """Rows of the input's embedding, which recomputation makes to need a gradient where it is frozen.

        transformers/modeling_utils.py, ``enable_input_require_grads``: by a hook on that module.
        """
        x = self.embedding(path, tokens)
        if self.model.rotary_dim and self.model.model_type != "gptj":
            self._turn()
        if self.model.family == "gemma":  # a module of its own, Gemma's scaled embedding
            x = ops.scale(self.m, x)
        if x.edge is None and self.job.checkpoint_activations:
            x = self.m.leaf(x, self.weights[path + ".weight"])
        return ops.scale(self.m, x) if self.model.model_type == "granite" else x

    def _turn(self) -> None:
        """The model's ``rotary_emb``: angles by a small product of its own, and what is looked up of them."""
        self.m.enter()
        self.m.meter.product()
        numel, kinds = self.job.sequence_length * self.model.rotary_dim, 1
        if self.model.model_type == "gemma3_text":
            kinds = 2
        cosines, sines = (
            tuple(self.m.tensor(numel, self._table_item) for _ in range(kinds)) for _ in range(2)
        )
        self.tables = cosines, sines

    @property
    def _table_item(self) -> int:
        """OLMo's stay in fp32, and so does what is turned by them (models/olmo/modeling_olmo.py)."""
        return ops.FLOAT if self.model.model_type in ("olmo", "olmo2") else self.item

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

    def rotary(self, x: Tensor, rotated: float = 1.0) -> Tensor:
        """``(x * cos) + (rotate_half(x) * sin)`` on a share of each head, and the rest beside it again."""
        return self.rotary_parts(x, rotated)[0] if self.turned else x

    def rotary_parts(self, x: Tensor, rotated: float) -> tuple[Tensor, ...]:
        """The same, then what it was made of: names of their own where attention's forward rotates itself."""
        m = self.m
        cosines, sines = (tuple(table.storage for table in kind) for kind in self.tables)
        if self.job.kernels == "fused":  # liger_kernel/ops/rope.py works in place
            return (m.op(x.numel, (x,), (-1,), item=x.item, keep=cosines + sines),)
        part = x.view(int(x.numel * rotated))
        wide = max(x.item, self._table_item)

        def times(x: Tensor, table: tuple[Storage, ...], gradient: int) -> Tensor:
            # repeated for every head, and heads lie beside each other until they are turned
            scratch = x.numel * wide if wide > x.item else 0
            return m.op(
                x.numel,
                (x,),
                (gradient,),
                item=wide,
                keep=table,
                scratch=scratch,
                kernel=ops.LOOKED_UP,
                shape=(x.numel,),
            )

        turned = times(self._rotate_half(part), sines, part.bytes)
        straight = times(part, cosines, x.bytes)
        out = ops.cast(m, ops.add(m, straight, turned, kernel=ops.LOOKED_UP), x.item)
        if rotated >= 1.0 and self.model.model_type not in CONCATENATES:
            return (out,)
        return m.op(x.numel, (out, x), (-1, x.bytes), item=x.item), out, x

    def _rotate_half(self, x: Tensor) -> Tensor:
        m = self.m
        half = x.numel // 2
        negative = m.op(half, (x,), (x.bytes,), item=x.item, kernel=ops.LOOKED_UP, shape=(half,))
        return m.op(x.numel, (negative, x), (negative.bytes, x.bytes), item=x.item)

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
        m = self.m
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
            )
            return out
        if self.windowed:
            return att.masked(m, q, k, v, shape)
        if self.item == ops.FLOAT and shape.kv_heads != shape.heads:
            return att.plain(m, q, k, v, shape)  # no fused kernel shares keys in fp32
        if self.item == ops.FLOAT or shape.head_dim > att.FLASH_HEAD_LIMIT:
            return att.efficient(m, q, k, v, shape)
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
        columns = one.shape[0 if written_out and model_type == "gpt2" else -1]
        weights.append(Weight(one.name, one.numel, item, index, columns, one.trainable, written_out))
    return tuple(weights)
