"""The private corners of torch, DeepSpeed and transformers that a phantom rehearsal stands on.

Everything here is undocumented ground that a release may move.  `probe` looks at each corner without using
it and names what is missing, so that a caller can fall back to arithmetic and say so; no other module of the
package but `trimtab.rehearse.calls` touches a private name of another project.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from trimtab.errors import EngineMoved
from trimtab.rehearse.streams import COMPUTE_STREAM, Event, Nothing, Stream

DEVICE = "phantom"

_CORNERS: tuple[tuple[str, str, str], ...] = (
    ("torch.utils.backend_registration", "_setup_privateuseone_for_python_backend", "our device"),
    ("torch.utils._python_dispatch", "TorchDispatchMode", "seeing every operator"),
    ("torch.utils._python_dispatch", "_disable_current_modes", "values of real tensors"),
    ("torch._subclasses.fake_tensor", "FakeTensorMode", "tensors without memory"),
    ("torch._subclasses.fake_tensor", "FakeTensor._normalize_fake_device", "moving a tensor's data"),
    ("torch.optim.optimizer", "_foreach_supported_types", "torch's optimizers as on a GPU"),
    ("torch", "Tensor._make_subclass", "making fake tensors fast"),
    ("torch.testing._internal.distributed.fake_pg", "FakeStore", "a process group of one process"),
    ("torch._C._distributed_c10d", "Work.boxed", "a collective that has ended"),
    ("torch._C._distributed_c10d", "ProcessGroup.unbox", "the size of a collective's group"),
    ("torch.autograd", "set_multithreading_enabled", "a backward pass in one thread"),
    ("torch.autograd.graph", "_engine_run_backward", "sums of gradients in place"),
    ("torch._C", "_storage_Use_Count", "sums of gradients in place"),
    ("torch._C", "_current_autograd_node", "the module of a backward operator"),
    ("torch._C._autograd", "_get_sequence_nr", "the module of a backward operator"),
    ("deepspeed.accelerator", "set_accelerator", "an accelerator of our own"),
    ("deepspeed.accelerator.cuda_accelerator", "CUDA_Accelerator", "an accelerator like CUDA's"),
    ("deepspeed.runtime.utils", "has_inf_or_nan", "no overflow in made-up gradients"),
    ("deepspeed.runtime.zero.utils", "assert_ints_same_as_other_ranks", "ranks that do not exist"),
    ("deepspeed.runtime.zero.utils", "get_lst_from_rank0", "ranks that do not exist"),
    ("deepspeed.runtime.zero.partition_parameters", "Init", "ZeRO-3's partitioned parameters"),
    ("deepspeed.runtime.zero.partitioned_param_coordinator", "PartitionedParameterCoordinator", "ZeRO-3"),
    ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS", "attention kernels"),
    ("transformers.modeling_utils", "PreTrainedModel.initialize_weights", "building without numbers"),
    ("deepspeed.utils.groups", "_init_tp_groups_with_new_group", "groups of tensor-parallel ranks"),
    ("deepspeed.sequence.cross_entropy", "_resolve_vocab_metadata", "logits split by vocabulary"),
    ("transformers.utils.import_utils", "is_fake_tensor", "a model that believes that it trains"),
    ("transformers.modeling_utils", "get_torch_context_manager_or_global_device", "building on our device"),
)


def versions() -> dict[str, str]:
    """Versions of the packages that a phantom rehearsal runs, those installed."""
    from importlib import metadata

    found = {}
    for package in ("torch", "deepspeed", "transformers", "peft", "liger-kernel"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def probe() -> None:
    """Look at every corner without using it.

    Raises:
        EngineMoved: a part is gone; names it, what it was for, and the versions.
    """
    for module_name, attribute, purpose in _CORNERS:
        try:
            place: Any = importlib.import_module(module_name)
            for name in attribute.split("."):
                place = getattr(place, name)
        except (ImportError, AttributeError) as gone:
            found = ", ".join(f"{name} {version}" for name, version in versions().items())
            raise EngineMoved(
                f"{module_name}.{attribute}, which a phantom rehearsal needs for {purpose}, is not in "
                f"{found or 'this environment'} ({gone}). Use the arithmetic estimate, or a version "
                "that the rehearsal is tested with (torch 2.13, deepspeed 0.19.8, transformers 5.17)."
            ) from gone


class _Backend:
    """What torch asks a device's module for."""

    Event, device = Event, Nothing

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """There is no randomness to seed."""

    def get_rng_state(self, *_: Any) -> Any:
        import torch

        return torch.empty(16, dtype=torch.uint8)  # the size of CUDA's: seed and offset, 8 bytes each

    def set_rng_state(self, *_: Any) -> None:
        """There is no randomness to set."""

    def current_stream(self, *_: Any) -> Any:
        return COMPUTE_STREAM

    def Stream(self, *args: Any, **named: Any) -> Any:  # noqa: N802
        return Stream(*args, **named)

    def synchronize(self, *_: Any) -> None:
        """Nothing is ever pending."""

    def get_amp_supported_dtype(self) -> list[Any]:
        import torch

        return [torch.bfloat16, torch.float16]

    def is_autocast_available(self, *_: Any) -> bool:
        return True


def make_device() -> None:
    """Register the made-up device with torch, once per process."""
    import torch
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=_Backend())
    # a thread per device runs the backward pass, and it ends the process for a device made in Python
    torch.autograd.set_multithreading_enabled(False)
    _let_data_move_between_devices()
    _keep_operators_whole()


_WHOLE: list[Any] = []


def _keep_operators_whole() -> None:
    """Claim the few operators that CPU and CUDA have a kernel for and other devices get in pieces.

    native_functions.yaml lists them with ``CompositeImplicitAutograd`` beside ``CPU, CUDA``; a device with a
    kernel of its own keeps them whole.  This one is never reached: the ledger stands above it.
    """
    import torch

    library = torch.library.Library("aten", "IMPL")
    for name in ("silu_backward", "mish_backward", "native_channel_shuffle"):
        library.impl(name, _no_kernel, "PrivateUse1")
    _WHOLE.append(library)  # its end would take the claims back


def _no_kernel(*_: Any, **__: Any) -> Any:
    raise AssertionError("an operator has passed the ledger by")


def references(tensor: Any) -> tuple[int, int, int]:
    """How many hold ``tensor`` in C++, its storage, and it in Python, this call's own among them."""
    import torch

    held = tensor._use_count() if hasattr(tensor, "_use_count") else 0
    return held, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata), sys.getrefcount(tensor)


def engine_is_calling() -> bool:
    """Whether autograd's engine itself called the dispatch mode that asks, and no Python in between."""
    import torch

    frame: Any = sys._getframe(3)
    while frame is not None and os.path.basename(frame.f_code.co_filename) in _WRAPPERS:
        frame = frame.f_back
    return frame is not None and frame.f_code is torch.autograd.graph._engine_run_backward.__code__


# torch/_compile.py and torch/_dynamo/eval_frame.py wrap a mode's dispatch
_WRAPPERS = ("_compile.py", "eval_frame.py")


def _let_data_move_between_devices() -> None:
    """Allow ``tensor.data = tensor_on_another_device``, which fake tensors refuse and DeepSpeed does.

    torch compares dispatch keys there.  Every fake tensor gets the keys of the made-up device (a fake
    tensor's own idea of its device is separate, in ``fake_device``), and setting ``data`` carries that over.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.optim.optimizer import _foreach_supported_types as foreach_types

    make, ours = FakeTensor.__new__, torch.device(DEVICE, 0)
    get_data, set_data = torch.Tensor.data.__get__, torch.Tensor.data.__set__

    def new(
        cls: Any, mode: Any = None, elem: Any = None, device: Any = None, *rest: Any, **named: Any
    ) -> Any:
        asked = device if device is not None else named.pop("fake_device", None)
        if asked is None:
            return make(cls, mode, elem, device, *rest, **named)
        tensor = make(cls, mode, elem, ours, *rest, **named)
        tensor.fake_device = torch.device(asked)
        return tensor

    def data(self: Any, value: Any) -> None:
        set_data(self, value)
        self.fake_device = value.device

    def apply(self: Any, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        # torch swaps fake parameters here, which hooks on them forbid; on a GPU it sets their data
        for child in self.children() if recurse else ():
            child._apply(fn)
        with torch.no_grad():
            for parameter in filter(None.__ne__, self._parameters.values()):
                parameter.data = fn(parameter)
                if parameter.grad is not None:
                    parameter.grad.data = fn(parameter.grad)
        self._buffers.update({name: fn(b) for name, b in self._buffers.items() if b is not None})
        return self

    torch.nn.Module._apply = apply
    # torch.optim takes its multi-tensor path for CUDA tensors, and asks for their exact type
    foreach_types.append(FakeTensor)
    FakeTensor.__new__ = new
    FakeTensor.data = property(get_data, data)


def fake_tensor_maker(mode: Any) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """A call that makes a bare fake tensor of a meta tensor, and the attributes that it still needs.

    ``FakeTensor.__new__`` checks its arguments for longer than a small operator takes.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    with mode:
        model = torch.empty(1)
    blank = {name: value for name, value in vars(model).items() if name != "_fake_device"}
    make_subclass, ours = torch.Tensor._make_subclass, torch.device(DEVICE, 0)

    def make(raw: Any) -> Any:
        return make_subclass(FakeTensor, raw, False, dispatch_device=True, device_for_backend_keys=ours)

    return make, blank


def open_world(rank: int, world_size: int, ranks_per_node: int) -> None:
    """Make this process rank ``rank`` of a fake process group, in torch and in the environment."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE=str(min(world_size, ranks_per_node)),
        LOCAL_SIZE=str(min(world_size, ranks_per_node)),
        CROSS_RANK=str(rank // ranks_per_node),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",
    )
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def take_group_over() -> None:
    """Let DeepSpeed's communication know the fake group before the engine is built."""
    import deepspeed

    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def split_layers(size: int) -> None:
    """Make the groups of ``size`` tensor-parallel ranks by lists: a mesh reads values, which nothing has."""
    from deepspeed.utils import groups

    take_group_over()
    groups._init_tp_groups_with_new_group(size)
    import deepspeed.sequence.cross_entropy as losses

    # asks every rank which rows of the vocabulary it holds
    losses._resolve_vocab_metadata = lambda rows, start, end, *_: (start, end, rows * size)


def trust_samples(engine: Any) -> None:
    """Take off the hook that compares the first samples of tensor-parallel ranks (runtime/engine.py:960)."""
    engine.first_dataloader_check.remove()


def real_values(tensor: Any) -> list[Any]:
    """The values of a real tensor, read beneath every dispatch mode."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return [value.item() for value in tensor.reshape(-1)]


_WORKS: list[Any] = []
"""The Python halves of handles, which the dispatcher does not hold."""


def finished_work(waited_for: Callable[[], None]) -> Any:
    """The handle of a collective that has ended, as the dispatcher passes it; tells when it is waited for."""
    from torch._C._distributed_c10d import Work

    class Handle(Work):
        def wait(self, *_: Any, **__: Any) -> bool:
            waited_for()
            return True

        def is_completed(self) -> bool:
            return True

    handle = Handle()
    _WORKS.append(handle)
    return handle.boxed()


def group_size_of(boxed: Any) -> int:
    """How many ranks the process group of a collective's arguments has."""
    from torch._C._distributed_c10d import ProcessGroup

    return int(ProcessGroup.unbox(boxed).size())


def quiet_engine(remember_zero: Callable[[Any], Any]) -> None:
    """Turn off what only other ranks or real numbers could answer.

    ZeRO-3 compares lists of integers with other ranks; the overflow checks read gradients that have no
    values: they run as they are, and ``remember_zero`` makes their answer "none".
    """
    import deepspeed.runtime.zero.utils as zero_utils
    from deepspeed.runtime import utils

    for name, instead in (
        ("assert_ints_same_as_other_ranks", lambda *_: None),
        ("assert_lst_len_same_as_other_ranks", lambda *_: None),
        ("get_lst_from_rank0", lambda values: values),
    ):
        _replace_everywhere(getattr(zero_utils, name), instead, name)
    check = utils.has_inf_or_nan
    _replace_everywhere(check, lambda x: remember_zero(check(x)), "has_inf_or_nan")


def use_kernels(builder: Callable[[str], Any]) -> None:
    """Put ``builder(name)`` in the place of every op builder that DeepSpeed's modules hold by name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("deepspeed."):
            for name, value in list(vars(module).items()):
                # the modules that define builders keep them: theirs are base classes of one another
                ours = name.endswith("Builder") and isinstance(value, type)
                if ours and value.__module__ != module.__name__:
                    setattr(module, name, builder(name))


def _replace_everywhere(old: Any, new: Any, name: str) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("deepspeed") and vars(module).get(name) is old:
            setattr(module, name, new)


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """Build a transformers model without giving its weights values; ties among them stay.

    Values do not exist here, and a partitioned parameter cannot be initialized in place.
    """
    from transformers.modeling_utils import PreTrainedModel

    saved = PreTrainedModel.initialize_weights
    PreTrainedModel.initialize_weights = lambda *_: None
    try:
        yield
    finally:
        PreTrainedModel.initialize_weights = saved


def compile_nothing() -> None:
    """Run what asks for ``torch.compile`` as it is: fake tensors cannot be compiled for.

    The engine imports an optimizer whose decorator would load torch's compiler, for a second.
    """
    import torch

    torch.compile = lambda model=None, **_: (lambda function: function) if model is None else model


def ask_no_processor() -> None:
    """Leave out the processor's name: DeepSpeed's CPU optimizers ask other programs for it, for a second."""
    with contextlib.suppress(ImportError):
        vars(importlib.import_module("cpuinfo"))["get_cpu_info"] = dict


def no_shared_memory_op() -> None:
    """Keep DeepSpeed from building its C++ shared-memory collective for ranks that do not exist."""
    # `import deepspeed.comm.torch as x` binds the real torch: the name is shadowed inside the package
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
