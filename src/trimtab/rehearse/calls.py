"""Calls of torch that cannot reach a device made in Python, or take another way there than on CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from trimtab.rehearse.corners import DEVICE


@contextlib.contextmanager
def torch_calls(tensor: Callable[..., Any], attention: Callable[..., Any]) -> Iterator[None]:
    """Put stand-ins in the place of a few of torch's calls that cannot reach a device made in Python."""
    import torch
    import torch.nn.functional as functional
    import transformers.modeling_utils as modeling
    from transformers.utils import import_utils

    def tolist(self: Any) -> Any:
        return [tolist(row) for row in self] if self.dim() else self.item()

    get_item = torch.Tensor.__getitem__

    def getitem(self: Any, index: Any) -> Any:
        # torch makes a list among the indices a tensor of the device itself, beneath every mode
        if isinstance(index, list):
            index = (index,)
        if isinstance(index, tuple) and any(type(part) is list for part in index):
            index = tuple(tensor(part) if type(part) is list else part for part in index)
        return get_item(self, index)

    def fused(whole: Any, plain: Any) -> Any:
        # aten/src/ATen/native/SoftMax.cpp: on CUDA one kernel reads fp16 and writes fp32
        def call(self: Any, dim: int, dtype: Any = None) -> Any:
            if self.dtype is torch.float16 and dtype is torch.float32 and self.device.type == DEVICE:
                return whole(self, dim, True)
            return plain(self, dim, dtype=dtype)

        return call

    saved = (
        torch.tensor,
        get_item,
        torch.Tensor.softmax,
        torch.Tensor.log_softmax,
        torch.Tensor.tolist,
        torch.Tensor.record_stream,
        functional.scaled_dot_product_attention,
        modeling.get_torch_context_manager_or_global_device,
        import_utils.is_fake_tensor,
    )
    import deepspeed.runtime.zero.partition_parameters as partition

    # zero.Init puts this one back in the place of torch.tensor
    partition._orig_torch_tensor = tensor
    torch.tensor = tensor
    torch.Tensor.__getitem__ = getitem
    torch.Tensor.softmax = fused(torch.ops.aten._softmax, torch.Tensor.softmax)
    torch.Tensor.log_softmax = fused(torch.ops.aten._log_softmax, torch.Tensor.log_softmax)
    torch.Tensor.tolist = tolist
    torch.Tensor.record_stream = lambda *_: None
    functional.scaled_dot_product_attention = attention
    modeling.get_torch_context_manager_or_global_device = lambda: None
    # transformers takes fake tensors for an export, and then makes masks that training does not make
    import_utils.is_fake_tensor = lambda _: False
    try:
        yield
    finally:
        (
            torch.tensor,
            torch.Tensor.__getitem__,
            torch.Tensor.softmax,
            torch.Tensor.log_softmax,
            torch.Tensor.tolist,
            torch.Tensor.record_stream,
            functional.scaled_dot_product_attention,
            modeling.get_torch_context_manager_or_global_device,
            import_utils.is_fake_tensor,
        ) = saved
