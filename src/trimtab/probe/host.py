"""What the host needs to issue work: operators, autograd, modules and their hooks.

Tensors are tiny, so that the device is always done first and the host's own time shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from trimtab.probe.notes import Notes

CALLS = 400
WIDTH = 64


def single_calls(device: str) -> dict[str, Callable[[], Any]]:
    """What models let the host issue most, by name; for `torch.no_grad`."""
    import torch

    dtype = torch.bfloat16
    x = torch.randn(WIDTH, WIDTH, device=device, dtype=dtype)
    y = torch.randn_like(x)
    weight = torch.randn_like(x)
    norm = torch.nn.LayerNorm(WIDTH, device=device, dtype=dtype)
    q = torch.randn(1, 2, WIDTH, WIDTH, device=device, dtype=dtype)
    functional = torch.nn.functional
    return {
        "add": lambda: x + y,
        "add_": lambda: x.add_(y),
        "cast": lambda: x.to(torch.float32),
        "empty": lambda: torch.empty(WIDTH, WIDTH, device=device, dtype=dtype),
        "view": lambda: x.view(-1),
        "linear": lambda: torch._C._nn.linear(x, weight),  # what functional.linear is until ZeRO-3 comes
        "layer_norm": lambda: norm(x),
        "dropout": lambda: functional.dropout(x, 0.1),
        "attention": lambda: functional.scaled_dot_product_attention(q, q, q, is_causal=True),
    }


def measure(notes: Notes) -> None:
    """Rows of kind ``issue``: seconds of one call on the host."""
    import torch

    with torch.no_grad():
        for name, body in single_calls(notes.device).items():
            notes.host("issue", _many(body), calls=CALLS, name=name)
    _autograd(notes)
    _modules(notes)
    if notes.on_gpu:
        _device(notes)
    began = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    notes.add("issue", [(time.perf_counter() - began) / 1e6], name="python loop")


def _many(body: Callable[[], Any], calls: int = CALLS) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            body()

    return run


def _autograd(notes: Notes) -> None:
    """A chain forward with a graph, and the way back through it."""
    import torch

    calls: dict[str, Callable[[Any, Any], Any]] = {
        "mul": lambda out, weight: out * 1.01,
        "linear": lambda out, weight: torch._C._nn.linear(out, weight),
    }
    if find_spec("deepspeed") is not None:
        from deepspeed.runtime.zero.linear import zero3_linear_wrap

        calls["zero3 linear"] = zero3_linear_wrap  # in functional.linear's place once ZeRO-3 has partitioned
    for name, call in calls.items():
        weight = torch.randn(WIDTH, WIDTH, device=notes.device, dtype=torch.bfloat16, requires_grad=True)
        forwards, backwards = [], []
        for _ in range(4):
            out = weight
            notes.wait()
            began = time.perf_counter()
            for _ in range(CALLS):
                out = call(out, weight)
            forwards.append((time.perf_counter() - began) / CALLS)
            loss = out.sum()
            notes.wait()
            began = time.perf_counter()
            loss.backward()
            backwards.append((time.perf_counter() - began) / CALLS)
            weight.grad = None
        notes.add("issue", forwards[1:], name=f"{name} with a graph")
        notes.add("issue", backwards[1:], name=f"{name} backward")


def _modules(notes: Notes) -> None:
    import torch

    x = torch.randn(4, 4, device=notes.device)
    plain, hooked = torch.nn.Identity(), torch.nn.Identity()
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    hooked.register_forward_hook(lambda module, inputs, output: None)
    notes.host("issue", _many(lambda: plain(x)), calls=CALLS, name="module")
    notes.host("issue", _many(lambda: hooked(x)), calls=CALLS, name="module with two hooks")


def _device(notes: Notes) -> None:
    import torch

    x = torch.zeros((), device="cuda")
    side, event = torch.cuda.Stream(), torch.cuda.Event()

    def switch() -> None:
        with torch.cuda.stream(side):
            pass

    notes.host("issue", _many(x.item, 50), calls=50, name="item")
    notes.host("issue", _many(torch.cuda.synchronize, 50), calls=50, name="synchronize")
    notes.host("issue", _many(switch), calls=CALLS, name="stream switch")
    notes.host("issue", _many(event.record), calls=CALLS, name="event record")
    notes.host("issue", _many(lambda: side.wait_event(event)), calls=CALLS, name="event wait")
