"""Fake tensors made fast: what an operator gave for the same shapes once, it gives again.

torch's own fake mode works out every call anew or looks it up in a general cache, at some 150 microseconds a
call; a training step repeats the same few hundred calls tens of thousands of times.  `Fakes` keeps, per
operator and exact argument metadata, only what the outputs look like and which argument they alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from trimtab.rehearse import corners

_empty_strided = torch.empty_strided
aten = torch.ops.aten
_SLICE = aten.slice.Tensor
# where a view's place depends on where its argument starts in the storage
_BY_PLACE = frozenset(
    (aten.as_strided.default, aten.view.dtype, aten.view_as_real.default, aten.view_as_complex.default)
)
_RESHAPES_ITS_ARGUMENT = frozenset(
    ("resize_", "resize_as_", "set_", "as_strided_", "t_", "transpose_", "squeeze_", "unsqueeze_")
)


class _Made:
    """One output of a known call: a new tensor, or a view of the argument at ``source``.

    ``offset`` counts from where that argument starts.
    """

    __slots__ = ("device", "dtype", "offset", "shape", "source", "stride")

    def __init__(self, tensor: FakeTensor, source: int | None, start: int) -> None:
        self.shape, self.stride = tensor.shape, tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.fake_device
        self.offset, self.source = tensor.storage_offset() - start, source


class _Mode(FakeTensorMode):
    def __deepcopy__(self, memo: dict[int, Any]) -> _Mode:
        # a copied tensor copies what it holds, and one of another mode has no views: each would be new
        return self


class Fakes:
    """Runs operators on fake tensors; `mode` is torch's own fake mode, for whatever is not known yet."""

    def __init__(self) -> None:
        self.mode = _Mode(allow_non_fake_inputs=True)
        self._known: dict[Any, _Made | tuple[_Made | None, ...] | str] = {}
        self._make, self._blank = corners.fake_tensor_maker(self.mode)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        """The result of ``func`` on fake arguments."""
        if func is _SLICE and not kwargs and type(args[0]) is FakeTensor:
            return self._slice(*args)
        try:
            signature: list[Any] = [func]
            if func in _BY_PLACE:
                signature.append(args[0].storage_offset())
            _sign(args, signature)
            if kwargs:
                for name in kwargs:
                    signature.append(name)
                _sign(kwargs.values(), signature)
            key = tuple(signature)
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be compared: a generator, a process group
            key, known = None, None
        if known is not None and known != "slow":
            if type(known) is _Made:
                return self._again(known, args)
            if type(known) is tuple:
                return tuple(None if made is None else self._again(made, args) for made in known)
            return args[0]  # "in place"
        with self.mode:
            result = func(*args, **kwargs) if kwargs else func(*args)
        if known is None and key is not None:
            self._known[key] = _learn(func, args, result)
        return result

    def _again(self, made: _Made, args: Sequence[Any]) -> FakeTensor:
        raw = _empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
        if made.source is not None:
            source = args[made.source]
            start = source.storage_offset() + made.offset
            raw.set_(source.untyped_storage(), start, made.shape, made.stride)
        return self._fake(raw, made.device)

    def _fake(self, raw: torch.Tensor, device: torch.device) -> FakeTensor:
        tensor = self._make(raw)
        tensor.__dict__.update(self._blank)
        tensor.__dict__["_fake_device"] = device
        return tensor

    def _slice(
        self, source: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
    ) -> FakeTensor:
        # ZeRO cuts its flat buffers at thousands of different places
        shape, stride = list(source.shape), source.stride()
        begin, stop, _ = slice(start, end).indices(shape[dim])
        shape[dim] = -(-max(0, stop - begin) // step)
        strides = list(stride)
        strides[dim] *= step
        raw = _empty_strided((0,), (1,), dtype=source.dtype, device="meta")
        raw.set_(source.untyped_storage(), source.storage_offset() + begin * stride[dim], shape, strides)
        return self._fake(raw, source.fake_device)


def _sign(values: Iterable[Any], out: list[Any]) -> None:
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            out.append(value.dtype)
            out.append(value.shape)
            out.append(value.stride())
            out.append(value._fake_device)
        elif kind is list or kind is tuple:
            out.append(len(value))
            _sign(value, out)
        elif isinstance(value, torch.Tensor):
            raise TypeError("a real tensor among the arguments")
        else:
            hash(value)
            out.append(kind)
            out.append(value)


def _learn(func: Any, args: Sequence[Any], result: Any) -> _Made | tuple[_Made | None, ...] | str:
    schema = func._schema
    if schema.is_mutable:
        name = schema.name.split("::")[-1]
        simple = args and result is args[0] and name.endswith("_") and name not in _RESHAPES_ITS_ARGUMENT
        return "in place" if simple else "slow"
    sources = {
        arg.untyped_storage()._cdata: (place, arg.storage_offset())
        for place, arg in enumerate(args)
        if isinstance(arg, FakeTensor)
    }
    if isinstance(result, tuple):
        made = tuple(None if item is None else _one(item, sources) for item in result)
        known = all(item is not None or given is None for item, given in zip(made, result, strict=True))
        return made if known else "slow"
    return _one(result, sources) or "slow"


def _one(result: Any, sources: dict[int, tuple[int, int]]) -> _Made | None:
    if type(result) is not FakeTensor or result.is_sparse or result.is_conj() or result.is_neg():
        return None
    source, start = sources.get(result.untyped_storage()._cdata, (None, 0))
    made = _Made(result, source, start)
    if source is None:
        fresh = _empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
        if made.offset or fresh.untyped_storage().nbytes() != result.untyped_storage().nbytes():
            return None
    return made
