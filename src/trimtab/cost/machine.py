"""An eager tensor library that only counts.

`estimate` answers by running the model's forward pass, its backward pass and the engine's buffers on tensors
that have a size and nothing else.  What an operator allocates, what autograd keeps of it and when each tensor
dies follow PyTorch's own rules: ``tools/autograd/derivatives.yaml`` says what is saved, Python's reference
counting says when a storage ends, and every size is rounded up to 512 bytes as the caching allocator does
(``c10/cuda/CUDACachingAllocator.cpp``, ``kMinBlockSize``).  No operator knows about ZeRO: the engine
(`trimtab.cost.engine`) listens to parameters being used and to gradients being made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from sys import getrefcount

from trimtab.cost.backward import HELD, PASS, Gradient, Summed, backward_kernels
from trimtab.cost.listener import GatheredView, Listener
from trimtab.cost.meter import COLLECTIVES, PART, Account, Kernel, Storage
from trimtab.cost.region import Region, Stop


class Weight:
    """A parameter as the machine sees it: a size, whether it trains, and the gradients still to come.

    ``index`` is its place among the model's parameters, ``columns`` the width of a row: the inputs of a
    linear layer, the width of an embedding; ``written_out`` if its class multiplies by it with operators of
    its own (``Conv1D``, ``FalconLinear``), not by the function that stage 3 replaces; ``upright`` if by the
    parameter itself (``Conv1D``), not by its transpose, a view that keeps what stage 3 gathered.
    """

    __slots__ = (
        "bytes", "columns", "edge", "index", "item", "name", "numel", "pending", "shared", "trainable",
        "upright", "uses", "written_out",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        numel: int,
        item: int,
        index: int = 0,
        columns: int = 0,
        trainable: bool = True,
        written_out: bool = False,
        upright: bool = False,
    ) -> None:
        self.name, self.numel, self.item, self.index = name, numel, item, index
        self.columns, self.trainable = columns, trainable
        self.written_out, self.upright = written_out, upright
        self.bytes = numel * item
        self.edge = self if trainable else None
        """Where its gradient goes."""
        self.uses = 0
        """Operators of this forward pass whose gradients are still to come."""
        self.pending: Storage | None = None
        """The sum of the gradients that have come so far."""
        self.shared = False
        """Whether that is a view, so that a sum cannot be made in place (autograd/input_buffer.cpp)."""


class Node:
    """One operator in the autograd graph: what it kept, and what its backward pass allocates."""

    __slots__ = (
        "by_name", "flops", "gradients", "inputs", "keeps_gathered", "kept", "kernel", "leaf", "made",
        "module", "part", "place", "region", "saved", "saves", "scratch", "shape", "slot", "sums",
        "transposed", "weights", "workspace",
    )  # fmt: skip

    def __init__(self) -> None:
        self.inputs: tuple[Edge | None, ...] = ()
        self.weights: tuple[Weight, ...] = ()
        self.gradients: tuple[Gradient, ...] = ()
        self.saved: tuple[Storage, ...] = ()
        self.scratch: tuple[int, ...] = ()
        self.workspace = self.flops = self.made = self.kept = self.slot = self.part = self.saves = 0
        self.kernel = "moving"
        self.shape: tuple[int, ...] = ()
        self.region: Region | None = None
        self.place: object = None
        self.keeps_gathered = False
        """Whether no input needs a gradient: no hook then tells the engine that its backward pass is over."""
        self.transposed = False
        """Whether its weight's gradient is a view of what it makes: ``mm(...).t()``."""
        self.by_name = False
        """Whether its gradients are made last input first: generated code goes by the names of an operator's
        arguments, such as ``other`` and ``self``, and ``mm``'s are always made so."""
        self.sums = False
        """Whether its own backward pass sums a broadcast gradient, and not autograd after it."""
        self.module = False
        """Whether it stands for the end of a module without parameters of its own."""
        self.leaf = False
        """Whether it is all that such a module does."""


Edge = Node | Weight
ALONE = 2
"""References to a gradient in its place that nobody else has, the one that asks included: a second is added
to it in place, else the sum is a new tensor (autograd/input_buffer.cpp, ``can_accumulate_inplace``)."""
_REPLAYED = Node()


class Tensor:
    """A count of elements, the bytes of one, a storage, and where its gradient goes."""

    __slots__ = ("bytes", "edge", "item", "numel", "storage")

    def __init__(self, numel: int, item: int, storage: Storage, edge: Node | None = None) -> None:
        self.numel, self.item, self.storage, self.edge = numel, item, storage, edge
        self.bytes = numel * item

    def view(self, numel: int) -> Tensor:
        """``numel`` of its elements, in the same storage and with the same gradient."""
        return Tensor(numel, self.item, self.storage, self.edge)


class Machine:
    """Runs operators forward, then backward, counting what is live and what work is done.

    ``item`` is the bytes of an activation element.  ``sharded`` says that it is stage 3, where the engine
    counts modules without parameters too and, if ``own_linear``, has a linear function of its own.
    """

    def __init__(
        self,
        *,
        meter: Account,
        listener: Listener,
        item: int,
        sharded: bool = False,
        own_linear: bool = True,
        fp16: bool = False,
    ) -> None:
        self.meter, self.listener, self.item, self.sharded = meter, listener, item, sharded
        self.own_linear, self.fp16 = sharded and own_linear, fp16
        self.tape: list[Node] = []
        self.part = PART["activations"]
        self.phase = "forward"
        self.kept: list[Storage] = []
        """Leaves and their gradients: they live as long as the loss whose graph they end."""
        self._region: Region | None = None
        self._replaying: Region | None = None
        self._replayed: list[tuple[Storage, ...]] = []
        self._replayed_saves = 0

    def new(self, count: int) -> Storage:
        """A fresh storage of ``count`` bytes."""
        return Storage(self.meter, count, self.part)

    def tensor(self, numel: int, item: int | None = None) -> Tensor:
        """A fresh tensor that needs no gradient."""
        item = self.item if item is None else item
        return Tensor(numel, item, self.new(numel * item))

    @contextmanager
    def counted_as(self, part: str) -> Iterator[None]:
        """Count what is made inside as ``part``."""
        before, self.part = self.part, PART[part]
        yield
        self.part = before

    def op(
        self,
        numel: int,
        inputs: tuple[Tensor | Weight | None, ...],
        gradients: tuple[Gradient, ...],
        *,
        item: int | None = None,
        keep: tuple[Storage, ...] = (),
        keep_output: bool = False,
        keeps_unseen: bool = False,
        extra: tuple[int, ...] = (),
        extra_first: bool = False,
        reads: int | None = None,
        scratch: tuple[int, ...] = (),
        workspace: int = 0,
        flops: int = 0,
        kernel: str = "moving",
        shape: tuple[int, ...] = (),
        view_of: Tensor | None = None,
        transposed: bool = False,
        sums: bool = False,
        by_name: bool = False,
        gathered: bool = False,
    ) -> Tensor:
        """Run one operator.

        Args:
            numel, item: elements of the output and bytes of one (default: the model's precision).
            inputs: tensors and weights that it reads.
            gradients: per input, what its backward pass makes (`trimtab.cost.backward.Gradient`).
            keep: storages that autograd keeps for the backward pass.
            keep_output: whether it keeps the output too.
            keeps_unseen: whether it keeps a weight too, which counts for nothing here, but which its backward
                pass asks recomputation for.
            extra: bytes of further tensors that it makes and keeps (dropout masks, log-sum-exps), after the
                output or, with ``extra_first``, before it.
            reads: bytes that it reads; all of its inputs unless given.
            scratch: bytes of each tensor that its backward pass makes for the gradients, before them.
            workspace: bytes of one that it makes after them.
            flops: floating-point operations of the forward pass.
            kernel, shape: its kernel's name and sizes, as in `trimtab.cost.meter.Kernel`.
            view_of: the tensor that the output only looks at; nothing is allocated then.
            transposed: whether the gradients of its weights are views.
            by_name: whether the gradients of its inputs are made last one first.
            sums: whether its own backward pass sums, or autograd once that has returned
                (torch/csrc/autograd/engine.cpp, ``validate_outputs``).
            gathered: whether its weights are gathered for a module around it.
        """
        item = self.item if item is None else item
        weights = () if gathered else tuple([one for one in inputs if isinstance(one, Weight)])
        edges = tuple([None if one is None else one.edge for one in inputs])
        recorded = any(edges)
        if weights:
            self.listener.before_use(weights, again=self._replaying is not None)
        saves = len(keep) + len(extra) + keep_output + keeps_unseen
        moved = numel * item
        if kernel not in COLLECTIVES:
            moved += sum(extra) + (sum([one.bytes for one in inputs if one]) if reads is None else reads)
        kept = sum([storage.bytes for storage in keep]) + sum(extra) + keep_output * numel * item
        replaced = self.own_linear and kernel == "product" and any(not one.written_out for one in weights)
        own = Tensor(numel, item, self.new(numel * item)) if replaced else None
        if own is not None:  # stage 3's own linear saves when it is done (zero/linear.py)
            self.works(kernel, moved, flops, shape)
        if recorded and keeps_unseen and self.sharded:
            alone = replaced or any(one.upright for one in weights)
            if not alone or (self.recomputing and any(one.trainable for one in weights)):
                keep, keeps_unseen = (*keep, GatheredView(self.listener, self.meter, weights[0])), False
        if recorded and (keep or keeps_unseen):
            keep = self._save(keep, keeps_unseen)
        more = tuple(self.new(count) for count in extra) if recorded and extra_first else ()
        if view_of is not None:
            out = Tensor(numel, item, view_of.storage)
        elif own is not None:
            out = own
        else:
            out = Tensor(numel, item, self.new(numel * item))
            self.works(kernel, moved, flops, shape)
        if kernel == "product":
            self.meter.product()
        if recorded and (keep_output or extra):
            more = more or tuple(self.new(count) for count in extra)
            keep = (*keep, *self._save((*more, out.storage) if keep_output else more))
        if weights:
            self.listener.after_use(weights)
        if recorded:
            node = self._record(out, edges, weights, gradients, keep, saves, scratch)
            if node is not None:
                node.flops, node.kernel, node.shape, node.kept = flops, kernel, shape, kept
                node.transposed, node.sums, node.by_name = transposed, sums, by_name
                node.workspace, node.made = workspace, out.bytes
        return out

    def adds(self, count: int) -> None:
        """Count a kernel that adds to ``count`` bytes in place, and makes nothing."""
        self.works("moving", 2 * count)

    def works(
        self, kernel: str, moved: int, flops: int = 0, shape: tuple[int, ...] = (), *, runs: int = 1
    ) -> None:
        """Count a kernel by itself."""
        phase = "recompute" if self._replaying else self.phase
        self.meter.work[Kernel(phase, kernel, moved, flops, shape)] += runs

    def communicates(self, name: str, count: int) -> None:
        """Count a collective ``name`` over the tensor-parallel group: ``count`` bytes of its tensor."""
        self.works(name, count)

    def _save(self, storages: tuple[Storage, ...], more: int = 0) -> tuple[Storage, ...]:
        if self._replaying is not None:
            self._replayed_saves += len(storages) + more
            if self._replayed_saves >= self._replaying.saves:
                self._replayed.append(storages)
                raise Stop
        elif self._region is not None:
            self._region.saves += len(storages) + more
            return ()
        return storages

    def _record(
        self,
        out: Tensor,
        edges: tuple[Edge | None, ...],
        weights: tuple[Weight, ...],
        gradients: tuple[Gradient, ...],
        kept: tuple[Storage, ...],
        saves: int,
        scratch: tuple[int, ...],
    ) -> Node | None:
        if self._replaying is not None:
            self._replayed.append(kept)
            out.edge = _REPLAYED
            return None
        node = Node()
        node.inputs, node.gradients, node.saved = edges, gradients, kept
        node.scratch, node.weights, node.part, node.region = scratch, weights, self.part, self._region
        node.saves = saves
        node.place = self.meter.place
        if self._region is not None:
            node.slot = self._region.nodes
            self._region.nodes += 1
        node.keeps_gathered = True
        for edge in edges:
            if isinstance(edge, Weight):
                edge.uses += 1
            elif edge is not None:
                node.keeps_gathered = False
        self.tape.append(node)
        out.edge = node
        return node

    def enter(self, weights: tuple[Weight, ...] = ()) -> None:
        """A module begins whose operators read no parameters; ``weights`` are gathered all the same."""
        if self.sharded:
            self.listener.before_use(weights, again=self.recomputing)

    def leave(self, out: Tensor, weights: tuple[Weight, ...] = ()) -> Tensor:
        """It ends with ``out``; its backward pass will begin there."""
        if not self.sharded:
            return out
        if weights:
            self.listener.after_use(weights)
        if out.edge is None:
            return out
        if isinstance(out.edge, Node) and out.edge.kernel == "native_dropout":
            out.edge.leaf = True
        marked = self.op(out.numel, (out,), (PASS,), item=out.item, view_of=out)
        if isinstance(marked.edge, Node) and marked.edge is not _REPLAYED:
            marked.edge.module = True
            marked.edge.weights, marked.edge.keeps_gathered = weights, True
        return marked

    def leaf(self, tensor: Tensor, weight: Weight | None = None) -> Tensor:
        """``tensor`` made to require a gradient (``enable_input_require_grads``).

        At stage 3 the engine gathers ``weight``, which made it, for its backward pass, and does not let go.
        """
        node = Node()
        node.part, node.saved = self.part, (tensor.storage,)
        tensor.edge = node
        if weight is None or not self.sharded:
            return tensor
        out = self.op(tensor.numel, (tensor,), (PASS,), item=tensor.item, view_of=tensor)
        assert isinstance(out.edge, Node)
        out.edge.weights, out.edge.keeps_gathered = (weight,), True
        return out

    # -- recomputation ---------------------------------------------------------------------------------

    @property
    def recomputing(self) -> bool:
        """Whether a region's forward pass runs for the second time."""
        return self._replaying is not None

    def checkpoint(self, run: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """``run(*arguments)`` with its activations recomputed in the backward pass."""
        self._region = Region(run, arguments)
        out = run(*arguments)
        self._region = None
        return out

    def _replay(self, region: Region) -> list[tuple[Storage, ...]]:
        if region.recomputed is None:
            self._replaying, self._replayed, self._replayed_saves = region, [], 0
            part, self.part = self.part, PART["activations"]
            with suppress(Stop):
                region.run(*region.arguments)
            self.part = part
            self._replaying = None
            region.recomputed, self._replayed = self._replayed, []
            region.owned = True
            region.recomputed += [()] * (region.nodes - len(region.recomputed))
        return region.recomputed

    # -- the backward pass -----------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """Walk the tape in reverse, as autograd does by sequence number."""
        gradients: dict[Node, Storage] = {}
        viewed: set[Edge] = set()
        if loss.edge is not None:
            gradients[loss.edge] = self.new(loss.bytes)
        loss.edge = None
        self.phase = "backward"
        tape, self.tape = self.tape, []
        while tape:
            node = tape.pop()
            if node.place is not self.meter.place:
                self.meter.turn_to(node.place)
            if node in gradients:
                self._step_back(node, gradients, viewed)
            if node.region is not None and node.slot == 0:
                node.region.finish()
                self._end_owner(node.region)
        self.meter.turn_to(None)
        for leaf, gradient in gradients.items():
            self.kept += [*leaf.saved, gradient]
        self.phase = "forward"

    def _step_back(self, node: Node, gradients: dict[Node, Storage], viewed: set[Edge]) -> None:
        """One node's backward pass; what waits in ``viewed`` is a view, and nothing is added to that."""
        incoming = gradients.pop(node)
        if node.weights or node.module:
            self.listener.before_use(node.weights)
        saved = node.saved
        asks = node.region is not None and node.saves > 0 and node.region.recomputed is None
        if node.region is not None and node.saves:
            recomputed = self._replay(node.region)
            saved, recomputed[node.slot] = recomputed[node.slot], ()
        part, self.part = self.part, node.part
        scratch = [self.new(size) for size in node.scratch]
        made: list[tuple[Edge, Storage, Summed | None]] = []
        wanted = list(zip(node.inputs, node.gradients, strict=True))
        product = node.kernel == "product"
        by_name = node.by_name or (product and not node.sums and not any(node.inputs[2:]))
        for edge, size in reversed(wanted) if by_name else wanted:
            if edge is None:
                continue
            if not isinstance(size, Summed):
                made.append((edge, self._gradient(size, incoming, saved), None))
            elif node.sums:
                made.append((edge, self._sum(size), None))
            else:
                made.append((edge, self._gradient(size.whole, incoming, saved), size))
            if product:
                self.meter.product()
        if by_name:
            made.reverse()
        if node.workspace:
            self.new(node.workspace)
        for kernel in backward_kernels(node):
            self.meter.work[kernel] += 1
        self.part = part
        del scratch
        if not node.sums:
            saved = ()  # the node keeps its own a little longer; what was recomputed is gone
        for place, (edge, _, summed) in enumerate(made):
            if summed is not None:
                made[place] = (edge, self._sum(summed), None)
        node.saved = ()
        del saved, incoming
        made.reverse()
        if node.kernel == "product" and not node.sums and any(node.inputs[2:]):
            made.append(made.pop(0))  # addmm's first input is the bias, and autograd goes by their order
        # its input's waits, at the module's own hook or at the view that F.linear makes before weight.t()
        if node.weights and (self.sharded or (node.kernel == "product" and any(node.inputs[2:]))):
            made.sort(key=lambda one: isinstance(one[0], Weight))
        while made:
            edge, gradient, _ = made.pop()
            if isinstance(edge, Node):
                if edge in gradients:
                    self.meter.work[Kernel("backward", "moving", 3 * gradient.bytes)] += 1
                    if edge in viewed or getrefcount(gradients[edge]) > ALONE:
                        gradients[edge] = Storage.summed(self.meter, gradient.bytes, self.part)
                        viewed.discard(edge)
                else:
                    gradients[edge] = gradient
                    if product and not node.sums:
                        viewed.add(edge)
                del gradient
            else:
                self._accumulate(edge, gradient, shared=node.transposed)
                del gradient  # a sum is there without what it was made of
                if not edge.uses:
                    self._complete(edge)
        if node.weights and not node.keeps_gathered:
            self.listener.after_use(node.weights)
        alone = (node.weights and not node.keeps_gathered) or node.leaf
        if asks and alone and node.region is not None:  # else a module around it asked, the layer at last
            self._end_owner(node.region)

    def _end_owner(self, region: Region) -> None:
        if self.sharded and region.owned:
            region.owned = False
            self.listener.after_owner()

    def _sum(self, size: Summed) -> Storage:
        total = self.new(size.bytes)
        if size.buffer:
            self.new(size.buffer)
        return total

    def _gradient(self, size: int, incoming: Storage, saved: tuple[Storage, ...]) -> Storage:
        if size >= 0:
            return self.new(size)
        return incoming if size == PASS else saved[HELD - size]

    def _accumulate(self, weight: Weight, gradient: Storage, *, shared: bool) -> None:
        weight.uses -= 1
        if weight.pending is None:
            weight.pending, weight.shared = gradient, shared
        elif weight.shared:  # a third tensor holds the sum
            weight.pending, weight.shared = Storage(self.meter, gradient.bytes, gradient.part), False

    def _complete(self, weight: Weight) -> None:
        total, weight.pending = weight.pending, None
        assert total is not None
        total.move(PART["gradients"])
        self.listener.on_gradient(weight, total)
