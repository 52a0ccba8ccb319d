"""What a rule looks at: one configuration with all that is known about who will read it and where it runs.

Every reader here tolerates nonsense: a value of a wrong type counts as absent, since the types are other
rules' finding.  So a rule may ask for what it needs and never raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from trimtab.config import AUTO, BLOCK, DEEPSPEED_OPTIMIZERS
from trimtab.job import Job
from trimtab.rules.coercion import Misfit, coerced, number, true_or_false, whole
from trimtab.schema import Key, Schema
from trimtab.source.pointer import OwnedValue, Pointer
from trimtab.source.tree import KeyPath, Source

if TYPE_CHECKING:
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.model import Model

Loader = Literal["deepspeed", "transformers", "accelerate", "trainer"]
"""Who reads the file and hands it to DeepSpeed; ``trainer`` is Transformers' Trainer by its other name."""
LOADERS: tuple[Loader, ...] = ("deepspeed", "transformers", "accelerate", "trainer")
_ABSENT: Any = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How many GPUs will run, as far as known."""

    gpus_per_node: int | None = None
    nodes: int | None = None

    @property
    def size(self) -> int | None:
        """GPUs in all; None unless both counts are known."""
        if self.gpus_per_node is None or self.nodes is None:
            return None
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One configuration to judge.

    ``raw`` is the mapping that DeepSpeed gets, found at ``base`` in ``source``.  ``pointer`` is the file that
    names it, if one was given.  ``model`` and ``cluster`` are None where nobody said.
    """

    source: Source
    raw: Mapping[str, Any]
    schema: Schema
    base: KeyPath = ()
    loader: Loader = "deepspeed"
    loader_assumed: bool = False
    """Whether nobody said who loads the file."""
    world: World = field(default_factory=World)
    job: Job | None = None
    job_problem: str | None = None
    pointer: Pointer | None = None
    pointer_source: Source | None = None
    model: Model | None = None
    model_name: str | None = None
    """What the model is called, whether or not the arithmetic knows it."""
    cluster: Cluster | None = None
    readable: bool = True
    """Whether ``raw`` is a whole configuration; where not, only rules over the text are run."""

    # -- who reads it --------------------------------------------------------------------------------------

    @property
    def fills_auto(self) -> bool:
        """Whether somebody replaces ``"auto"`` before DeepSpeed sees it."""
        return self.loader != "deepspeed"

    @property
    def filler(self) -> str:
        """The program that fills ``"auto"``, as `trimtab.schema` names it."""
        return "accelerate" if self.loader == "accelerate" else "transformers"

    @property
    def owned(self) -> tuple[OwnedValue, ...]:
        """Values of the pointing file."""
        return self.pointer.owned if self.pointer else ()

    def since(self, version: str) -> bool:
        """Whether the DeepSpeed judged against is ``version`` or newer."""
        return _release(self.schema.version.name) >= _release(version)

    # -- values --------------------------------------------------------------------------------------------

    def written(self, dotted: str) -> Any:
        """The value as it stands; None where it does not.  Aliases of its last key count."""
        place = self.place(dotted)
        return None if place is None else self._at(place)

    def place(self, dotted: str) -> KeyPath | None:
        """Where the key stands under any of its names; None where it does not."""
        found = self._places.get(dotted)
        return found[0] if found else None

    def has(self, dotted: str) -> bool:
        """Whether the key stands there, whatever its value."""
        return self.place(dotted) is not None

    def value(self, dotted: str) -> Any:
        """The value as the engine takes it: converted, ``"auto"`` and null as absent, else the default.

        None where the value is one that the engine refuses.
        """
        if dotted in self._values:
            return self._values[dotted]
        self._values[dotted] = value = self._value(dotted)
        return value

    def _value(self, dotted: str) -> Any:
        key = self.schema.key(dotted)
        default = key.default if key is not None and key.has_default else None
        given = self.written(dotted)
        if given is None or given == AUTO:
            return default
        if key is None:
            return given
        try:
            return coerced(key, given)
        except Misfit:
            return None

    def on(self, dotted: str) -> bool:
        """Whether a switch is on, with the engine's default where it is absent."""
        value = self.value(dotted)
        try:
            return true_or_false(value)
        except Misfit:
            return False

    def off(self, dotted: str) -> bool:
        """Whether a switch is clearly off."""
        value = self.value(dotted)
        try:
            return not true_or_false(value)
        except Misfit:
            return False

    def integer(self, dotted: str) -> int | None:
        """A whole number as the engine reads it; None where there is none."""
        value = self.value(dotted)
        if value is None or isinstance(value, bool):
            return None
        try:
            return whole(value)
        except Misfit:
            return None

    def amount(self, dotted: str) -> float | None:
        """A number as the engine reads it; None where there is none."""
        value = self.value(dotted)
        if value is None or isinstance(value, (bool, str)):
            return None
        try:
            return number(value)
        except Misfit:
            return None

    def text(self, dotted: str) -> str | None:
        """A text; None where there is none."""
        value = self.value(dotted)
        return value if isinstance(value, str) else None

    def block(self, dotted: str) -> Mapping[str, Any]:
        """A block; empty where there is none."""
        value = self.written(dotted) if dotted else self.raw
        return value if isinstance(value, Mapping) else {}

    def _at(self, place: KeyPath) -> Any:
        value: Any = self.raw
        for key in place:
            value = value[key]
        return value

    @cached_property
    def _values(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _places(self) -> dict[str, list[KeyPath]]:
        """Every key that stands in the file, under the schema's name of it."""
        found: dict[str, list[KeyPath]] = {}
        for place, _ in self.entries:
            found.setdefault(self.schema.canonical(".".join(map(str, place))), []).append(place)
        return found

    @cached_property
    def entries(self) -> tuple[tuple[KeyPath, Any], ...]:
        """Every key of the file with its value, but not the ``bfloat16`` block beside ``bf16``.

        The engine skips that block. Keys with a dot in them are left out too: they are never DeepSpeed's.
        """
        skipped = "bfloat16" if self.raw.get("bf16") is not None else None
        return tuple(
            (place, value)
            for place, value in walk(self.raw)
            if place[0] != skipped and not any("." in str(part) for part in place)
        )

    @cached_property
    def known(self) -> tuple[tuple[KeyPath, Key, Any], ...]:
        """The entries that this release reads, parameters of optimizers and schedulers left out."""
        found = []
        for place, value in self.entries:
            parameter = len(place) > 2 and place[:2] in (("optimizer", "params"), ("scheduler", "params"))
            key = None if parameter or place[0] == BLOCK else self.schema.key(".".join(map(str, place)))
            if key is not None:
                found.append((place, key, value))
        return tuple(found)

    def doubles(self) -> Iterator[tuple[str, list[KeyPath]]]:
        """Keys that stand under more than one of their names."""
        for dotted, places in self._places.items():
            if len(places) > 1:
                yield dotted, places

    # -- what the engine will be ---------------------------------------------------------------------------

    @property
    def stage(self) -> int | None:
        """The ZeRO stage; None where nobody can say (``"auto"``, or a value that the engine refuses)."""
        section = self.raw.get("zero_optimization")
        if isinstance(section, bool):  # deprecated: true means stage 1 (runtime/zero/config.py:60-75)
            return int(section)
        if section is not None and not isinstance(section, Mapping):
            return None
        if self.fills_auto and self.written("zero_optimization.stage") == AUTO:
            return None
        return self.integer("zero_optimization.stage")

    def offload(self, what: Literal["optimizer", "param"]) -> str:
        """The device as written: ``none``, ``cpu`` or ``nvme``; the retired ``cpu_offload`` counts."""
        device = self.text(f"zero_optimization.offload_{what}.device")
        retired = "cpu_offload" if what == "optimizer" else "cpu_offload_param"
        if (device is None or device == "none") and self.on(f"zero_optimization.{retired}"):
            return "cpu"
        return device or "none"

    @property
    def precision(self) -> str | None:
        """``bf16``, ``fp16`` or ``fp32``; None where somebody else decides or both are on."""
        modes = [mode for mode in ("bf16", "fp16") if self.on(f"{mode}.enabled")]
        if len(modes) == 2:
            return None
        if (
            not modes
            and self.fills_auto
            and any(self.written(f"{m}.enabled") == AUTO for m in ("bf16", "fp16"))
        ):
            return None
        return modes[0] if modes else "fp32"

    @property
    def optimizer(self) -> str | None:
        """The optimizer's name as the engine reads it; None without one (runtime/config.py:288, 519)."""
        name = self.written("optimizer.type")
        if not isinstance(name, str):
            return None
        return name.lower() if name.lower() in DEEPSPEED_OPTIMIZERS else name

    @property
    def scheduler(self) -> str | None:
        """The scheduler's name; None without one."""
        name = self.written("scheduler.type")
        return name if isinstance(name, str) else None

    @property
    def shares_a_batch(self) -> int | None:
        """Ranks that share one micro batch by the batch identity; None if unclear.

        Sequence parallelism and pipelines count; of `tensor_parallel.autotp_size` the identity knows nothing
        (runtime/config.py:455-475 asks the whole world).
        """
        sequence = self.integer("sequence_parallel_size") if self.has("sequence_parallel_size") else 1
        stages = self.job.pipeline_stages if self.job else 1
        return None if sequence is None or sequence < 1 else sequence * stages

    @cached_property
    def needs(self) -> dict[tuple[str, ...], Any]:
        """Estimates already made, by the paths they change; `trimtab.rules.estimate` keeps them here."""
        return {}

    @cached_property
    def typed(self) -> Config | None:
        """The typed view of the configuration; None where it is too broken for one."""
        from trimtab.config import Config

        if self.job is None:
            return None
        return Config(raw=self.raw, name=self.source.file, job=self.job)


def walk(value: Any, above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of nested objects with its value, outer ones first; what is inside lists is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (*above, key), inner
            yield from walk(inner, (*above, key))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
