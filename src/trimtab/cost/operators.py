"""The operators that Hugging Face models are written in, with what PyTorch keeps of each.

Every function runs one module or operator on a `Machine`.  What autograd keeps is that of
``tools/autograd/derivatives.yaml`` in PyTorch 2.11 to 2.13; the composition of a module is that of
transformers 5.17 (file beside each where it is not obvious).
"""

from __future__ import annotations

from trimtab.cost.backward import CUT, PASS, Summed
from trimtab.cost.machine import Machine, Tensor, Weight
from trimtab.cost.reduction import reduction_bytes

FLOAT = 4
MASK = 1
LOOKED_UP = "looked up"
"""An element-wise kernel that looks up where each element lies (`trimtab.cost.meter.Kernel.name`)."""
PICKED = "nll_loss_forward"
"""A kernel that reads an element of each row; its backward pass fills a tensor as large with zeros first
(native/cuda/Loss.cu, ``nll_loss_backward_out_cuda``)."""


def linear(m: Machine, x: Tensor, weight: Weight, bias: Weight | None = None) -> Tensor:
    """``x @ weight.T + bias``; keeps x if the weight trains (``mm``, ``addmm``).

    Stage 3 has a linear function of its own (zero/linear.py:41-112), which ``Conv1D`` does not call: it keeps
    x always, and a kernel of its own adds the bias.
    """
    rows = x.numel // weight.columns
    columns = weight.numel // weight.columns
    own = m.own_linear and not weight.written_out
    keep = (x.storage,) if weight.trainable or own else ()
    if bias is not None and own:
        m.adds(rows * columns * x.item)
    return m.op(
        rows * columns,
        (x, weight, bias),
        (x.bytes, weight.bytes, _of_rows(PASS, rows, bias, x.item) if bias else 0),
        keep=keep,
        keeps_unseen=x.edge is not None,
        item=x.item,
        flops=2 * rows * weight.numel,
        transposed=not (own or weight.written_out),
        sums=own,
        kernel="product",
        shape=(1, rows, weight.columns, columns, x.item),
    )


def add_bias(m: Machine, x: Tensor, bias: Weight) -> Tensor:
    """``x + bias`` by an operator of its own."""
    summed = _of_rows(PASS, x.numel // bias.numel, bias, x.item)
    return m.op(x.numel, (x, bias), (PASS, summed), item=x.item)


def _of_rows(whole: int, rows: int, weight: Weight, item: int, made: int | None = None) -> Summed:
    """The gradient of a ``weight`` that was read for each of ``rows``, summed in ``item`` bytes."""
    size = weight.bytes if made is None else made
    return Summed(whole, size, reduction_bytes(rows, weight.numel, item))


def add(m: Machine, a: Tensor, b: Tensor, *, kernel: str = "moving") -> Tensor:
    """``a + b``, keeps nothing; what is broadcast gets a sum."""
    numel = max(a.numel, b.numel)
    gradients = tuple(PASS if one.numel == numel else Summed(PASS, one.bytes) for one in (a, b))
    return m.op(numel, (a, b), gradients, item=max(a.item, b.item), kernel=kernel, shape=(numel,))


def scale(m: Machine, x: Tensor, *, kernel: str = "moving") -> Tensor:
    """``x`` times, or divided by, a number or what does not train: keeps nothing."""
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, kernel=kernel, shape=(x.numel,))


def shift(m: Machine, x: Tensor) -> Tensor:
    """``x`` plus a number."""
    return m.op(x.numel, (x,), (PASS,), item=x.item)


def masked(m: Machine, scores: Tensor) -> Tensor:
    """``scores`` plus a mask that all heads share and that does not train."""
    return m.op(scores.numel, (scores,), (PASS,), item=scores.item, kernel=LOOKED_UP, shape=(scores.numel,))


def mul(m: Machine, a: Tensor, b: Tensor) -> Tensor:
    """``a * b`` of two tensors of one shape: keeps what the other's gradient needs."""
    keep = (*((a.storage,) if b.edge else ()), *((b.storage,) if a.edge else ()))
    return m.op(a.numel, (a, b), (a.bytes, b.bytes), keep=keep, item=max(a.item, b.item), by_name=True)


def cast(m: Machine, x: Tensor, item: int) -> Tensor:
    """``x`` in another precision; itself if it has it."""
    kernel = "to fp32" if item > x.item else "to bf16"
    return x if x.item == item else m.op(x.numel, (x,), (x.bytes,), item=item, kernel=kernel)


def copy(m: Machine, x: Tensor) -> Tensor:
    """A contiguous copy of what is not."""
    return m.op(x.numel, (x,), (PASS,), item=x.item, kernel=LOOKED_UP, shape=(x.numel,))


def by_head(m: Machine, x: Tensor) -> Tensor:
    """``x`` looked at head by head: its gradient comes back so, and is copied."""
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, view_of=x, kernel=LOOKED_UP, shape=(x.numel,))


def cut(m: Machine, x: Tensor, numel: int) -> Tensor:
    """A slice of ``x``, whose gradient is one of all: zeros, and the slice's laid into them."""
    return m.op(numel, (x,), (x.bytes,), item=x.item, view_of=x, kernel=CUT, shape=(numel, x.item))


def split(m: Machine, packed: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Views of ``packed``; the last one's gradient stands for all in one (``SplitBackward``)."""
    gradients = [PASS] * (len(sizes) - 1) + [packed.bytes]
    return tuple(
        m.op(size, (packed,), (gradient,), item=packed.item, view_of=packed)
        for size, gradient in zip(sizes, gradients, strict=True)
    )


def embedding(m: Machine, tokens: int, weight: Weight, *, gathered: bool = False) -> Tensor:
    """Rows of ``weight``, which may be ``gathered`` for a module around this; its gradient is dense."""
    return m.op(
        tokens * weight.columns,
        (weight,),
        (weight.bytes,),
        item=weight.item,
        kernel="embedding",
        gathered=gathered,
    )


def dropout(m: Machine, x: Tensor, probability: float) -> Tensor:
    """``native_dropout``: keeps a mask of one byte an element; x itself where the probability is 0."""
    if not probability:
        return x
    mask = (x.numel * MASK,)  # made first (native/cuda/Dropout.cu)
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, extra=mask, extra_first=True, kernel="native_dropout")


def softmax(m: Machine, x: Tensor, item: int | None = None) -> Tensor:
    """Softmax in the precision of ``item`` bytes: keeps its output.

    On CUDA its backward pass first makes the product of gradient and output (native/cuda/SoftMax.cu,
    ``softmax_backward_cuda_out``).
    """
    item = x.item if item is None else item
    return m.op(
        x.numel,
        (x,),
        (x.bytes,),
        item=item,
        keep_output=True,
        scratch=(x.numel * item,),
        kernel="_softmax",
    )


def safe_softmax(m: Machine, x: Tensor) -> Tensor:
    """``_safe_softmax``: a softmax, and which of the scores are masked, while it runs (attention.cpp)."""
    out = softmax(m, x)
    m.tensor(x.numel, MASK)
    m.works("moving", x.bytes + x.numel * MASK)
    m.works("mean rows fp32", x.numel * MASK)
    m.works(LOOKED_UP, 2 * x.bytes, shape=(x.numel,))
    return out


def tanh(m: Machine, x: Tensor, kernel: str = "tanh") -> Tensor:
    """``tanh``: keeps its output, as relu and sigmoid do."""
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, keep_output=True, kernel=kernel)


def keeps_input(m: Machine, x: Tensor, kernel: str) -> Tensor:
    """An activation that keeps its input: ``silu``, ``gelu``."""
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, keep=(x.storage,), kernel=kernel)


def new_gelu(m: Machine, x: Tensor) -> Tensor:
    """``NewGELUActivation`` (activations.py:66), written out in elementary operators."""
    half = scale(m, x)
    return mul(m, half, shift(m, tanh(m, scale(m, add(m, x, scale(m, _power(m, x)))))))


def fast_gelu(m: Machine, x: Tensor) -> Tensor:
    """``FastGELUActivation`` (activations.py:107), written out in elementary operators."""
    half, scaled = scale(m, x), scale(m, x)
    return mul(m, half, shift(m, tanh(m, mul(m, scaled, shift(m, mul(m, scale(m, x), x))))))


def python_gelu(m: Machine, x: Tensor) -> Tensor:
    """``GELUActivation`` in Python (activations.py:75): x / 2 times 1 + erf."""
    half, scaled = scale(m, x), scale(m, x)
    # derivatives.yaml, erf: 2 / sqrt(pi) * exp(-(self.pow(2))) * grad
    erf = m.op(x.numel, (scaled,), (x.bytes,), item=x.item, keep=(scaled.storage,), scratch=(x.bytes,) * 4)
    del scaled
    return mul(m, half, shift(m, erf))


def _power(m: Machine, x: Tensor) -> Tensor:
    """``x.pow(n)``; ``pow_backward`` is grad * (n * x.pow(n - 1)) (FunctionsManual.cpp)."""
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, keep=(x.storage,), scratch=(x.bytes,) * 2)


def activation(m: Machine, x: Tensor, name: str) -> Tensor:
    """The activation that ``ACT2FN[name]`` names."""
    if name == "linear":
        return x
    if name in ("relu", "relu6", "tanh", "sigmoid"):
        return tanh(m, x, "tanh" if name == "tanh" else "moving")
    if name == "gelu_fast":
        return fast_gelu(m, x)
    if name == "gelu_python":
        return python_gelu(m, x)
    if name in ("gelu_new", "gelu_accurate"):
        return new_gelu(m, x)
    if name == "relu2":
        return _power(m, tanh(m, x, "moving"))
    if name == "quick_gelu":
        gate = tanh(m, scale(m, x), "moving")
        return mul(m, x, gate)
    return keeps_input(m, x, "silu" if name in ("silu", "swish") else "gelu")


def layer_norm(
    m: Machine, x: Tensor, width: int, weight: Weight | None = None, bias: Weight | None = None
) -> Tensor:
    """``native_layer_norm``: keeps x, and mean and reciprocal deviation of each row in fp32."""
    rows = x.numel // width
    return m.op(
        x.numel,
        (x, weight, bias),
        (x.bytes, weight.bytes if weight else 0, bias.bytes if bias else 0),
        item=x.item,
        keep=(x.storage,),
        extra=(rows * FLOAT, rows * FLOAT),
        kernel="native_layer_norm",
        shape=(rows, width),
    )


def wide_layer_norm(m: Machine, x: Tensor, width: int) -> Tensor:
    """``OlmoLayerNorm``: in fp32, and without weights."""
    return cast(m, layer_norm(m, cast(m, x, FLOAT), width), x.item)


def rms_norm(m: Machine, x: Tensor, weight: Weight, *, wide_weight: bool = False) -> Tensor:
    """``LlamaRMSNorm``: squares in fp32, scales there, and goes back before the weight.

    ``wide_weight``: after the weight, as ``Olmo2RMSNorm``.
    """
    wide = cast(m, x, FLOAT)
    factor = _rsqrt_of_mean_square(m, wide, x.numel // weight.numel)
    scaled = _mul_by_rows(m, wide, factor)
    del wide, factor
    if wide_weight:
        return cast(m, _weighted(m, scaled, weight), x.item)
    return _weighted(m, cast(m, scaled, x.item), weight)


def clamp(m: Machine, x: Tensor) -> Tensor:
    """``clamp_``: in place, so a copy of what was there is kept; its backward pass makes two masks."""
    return m.op(
        x.numel, (x,), (x.bytes,), item=x.item, view_of=x, extra=(x.bytes,), scratch=(x.numel * MASK,) * 2
    )


def t5_norm(m: Machine, x: Tensor, weight: Weight) -> Tensor:
    """``T5LayerNorm``: like `rms_norm`, but scales the narrow x by a wide factor."""
    factor = _rsqrt_of_mean_square(m, cast(m, x, FLOAT), x.numel // weight.numel)
    scaled = _mul_by_rows(m, x, factor, item=FLOAT)
    del factor
    narrow = cast(m, scaled, weight.item)
    del scaled
    return _weighted(m, narrow, weight)


def gemma_norm(m: Machine, x: Tensor, weight: Weight) -> Tensor:
    """``GemmaRMSNorm``: everything in fp32, the weight included, and back at the end."""
    wide = cast(m, x, FLOAT)
    factor = _rsqrt_of_mean_square(m, wide, x.numel // weight.numel)
    scaled = _mul_by_rows(m, wide, factor)
    del wide, factor
    m.works("to fp32", weight.bytes + weight.numel * FLOAT)
    m.adds(weight.numel * FLOAT)  # 1 + weight
    rows = scaled.numel // weight.numel
    out = m.op(
        scaled.numel,
        (scaled, weight),
        (scaled.bytes, _of_rows(scaled.bytes, rows, weight, FLOAT, weight.numel * FLOAT)),
        item=FLOAT,
        keep=(scaled.storage,) if weight.trainable else (),
        by_name=True,
        kernel=LOOKED_UP,
        shape=(scaled.numel,),
    )
    del scaled
    return cast(m, out, x.item)


def fused_rms_norm(m: Machine, x: Tensor, weight: Weight) -> Tensor:
    """Liger's RMSNorm: keeps x and one fp32 factor a row (liger_kernel/ops/rms_norm.py)."""
    rows = x.numel // weight.numel
    return m.op(
        x.numel,
        (x, weight),
        (PASS, weight.bytes),
        item=x.item,
        keep=(x.storage,),
        extra=(rows * FLOAT,),
    )


def _rsqrt_of_mean_square(m: Machine, wide: Tensor, rows: int) -> Tensor:
    square = _power(m, wide)
    mean = m.op(rows, (square,), (square.bytes,), item=FLOAT, kernel="mean rows fp32", shape=(wide.numel,))
    m.adds(mean.bytes)  # epsilon
    return m.op(rows, (mean,), (mean.bytes,), item=FLOAT, keep_output=True)


def _mul_by_rows(m: Machine, x: Tensor, factor: Tensor, item: int | None = None) -> Tensor:
    keep = (*((x.storage,) if factor.edge else ()), *((factor.storage,) if x.edge else ()))
    item = x.item if item is None else item
    # the factor's gradient is a full product before it is summed over the columns, and that of a narrower x
    # is wide before it is cast
    full = x.numel * item
    own = x.bytes if x.item == item else Summed(full, x.bytes, kernel="to bf16")
    return m.op(
        x.numel,
        (x, factor),
        (own, Summed(full, factor.bytes, kernel="mean rows fp32")),
        item=item,
        keep=keep,
        by_name=True,
        kernel=LOOKED_UP,
        shape=(x.numel,),
    )


def _weighted(m: Machine, x: Tensor, weight: Weight) -> Tensor:
    return m.op(
        x.numel,
        (weight, x),
        (_of_rows(x.bytes, x.numel // weight.numel, weight, x.item), x.bytes),
        item=x.item,
        keep=(x.storage,) if weight.trainable else (),
        by_name=True,
        kernel=LOOKED_UP,
        shape=(x.numel,),
    )


def cross_entropy(m: Machine, logits: Tensor, *, fp32: bool) -> Tensor:
    """``cross_entropy``: keeps the log-probabilities, in fp32 where the loss casts the logits first."""
    with m.counted_as("logits and loss"):
        wide = cast(m, logits, FLOAT) if fp32 else logits
        log_probabilities = m.op(
            wide.numel, (wide,), (wide.bytes,), item=wide.item, keep_output=True, kernel="_log_softmax"
        )
        del wide
        return m.op(1, (log_probabilities,), (log_probabilities.bytes,), item=FLOAT, kernel=PICKED, reads=0)
