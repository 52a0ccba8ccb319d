"""What one run was asked to do, as a value that goes to every rank and into the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trimtab.catalogue import load_config
from trimtab.config import Config, fit_world
from trimtab.errors import UnreadableFile, UsageError
from trimtab.train.forms import cpu_form

DEVICES = ("auto", "cuda", "cpu")
SHRUNKEN_SEQUENCE_LENGTH, SHRUNKEN_TARGET_LENGTH = 128, 64
SHRUNKEN_VOCABULARY = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A run's request; names are those of ``trimtab train``'s options."""

    config: str
    """Catalogue name or path."""
    data: tuple[str, ...]
    run: str
    pretrained: str | None = None
    tokenizer: str | None = None
    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    resume: str = "never"
    overwrite: bool = False
    seed: int = 1234
    save_every: int = 0
    """Optimizer steps between checkpoints; 0 saves one at the end."""
    keep: int = 2
    """Newest checkpoints that stay."""
    eval_every: int = 0
    """Optimizer steps between looks at the validation part; 0 looks at the end."""
    validation: float = 0.01
    """Part of the data that is never trained on, 0 to 0.5."""
    text_field: str | None = None
    target_field: str | None = None
    label_field: str | None = None
    prefix: str | None = None
    """Put before every source of a seq2seq task, such as ``"summarize: "``."""
    learning_rate: float | None = None
    warmup_steps: int | None = None
    changes: tuple[str, ...] = ()
    """``KEY=VALUE`` with a dotted configuration key and a JSON value."""
    shrink: bool = False
    freeze: tuple[str, ...] = ()
    device: str = "cuda"
    """``cpu`` or ``cuda``; "auto" is settled before a value of this class is made."""
    workers: int = 0
    """Processes that read data, per rank."""
    export: bool = True
    prompt: str | None = None
    """Start of the sample text; None takes some words of the validation part."""
    sample_tokens: int = 80
    checkpoint: str | None = None
    """The verified checkpoint that `trimtab train` chose to continue from."""
    launched: bool = False
    """True if `trimtab train` started the ranks: it holds the folder's lock and forwards signals."""

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.steps, self.epochs, self.tokens)) > 1:
            raise UsageError("--steps, --epochs and --tokens are three ways to say how long: give one")
        for name in ("steps", "epochs", "tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"--{name} must be above 0, not {value}")
        if not 0 <= self.validation <= 0.5:
            raise UsageError(f"--validation must be between 0 and 0.5, not {self.validation}")
        if self.keep < 1:
            raise UsageError("--keep must be at least 1: the newest checkpoint stays")

    def save(self, path: Path) -> None:
        """Write these settings as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Settings:
        """The settings in a file that `save` wrote."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            kept: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
                if key in known
            }
            return cls(**kept)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UnreadableFile(f"{path}: no readable settings of a run: {error}") from error


UNREAD = ("unknown-key", "ignored-key", "unknown-optimizer-parameter", "unknown-scheduler-parameter")
"""The rules of `trimtab check` about keys that nothing reads."""


def effective_config(settings: Settings, *, world: int) -> tuple[Config, tuple[str, ...]]:
    """The configuration that this run really uses on ``world`` ranks, and what was changed in it and why.

    Raises:
        NotFound, UnreadableFile, UsageError, RefusedConfig: as for reading it, or the batch does not fit the
        world.
    """
    config = load_config(settings.config)
    config = config.with_values(_asked_for(settings, config))
    _refuse_unknown(settings, config)
    notes: list[str] = []
    if settings.shrink:
        changes: dict[str, Any] = {}
        if config.job.sequence_length > SHRUNKEN_SEQUENCE_LENGTH:
            changes["trimtab.sequence_length"] = SHRUNKEN_SEQUENCE_LENGTH
        if (config.job.target_length or 0) > SHRUNKEN_TARGET_LENGTH:
            changes["trimtab.target_length"] = SHRUNKEN_TARGET_LENGTH
        stated = {change.split("=", 1)[0] for change in settings.changes}
        changes = {key: value for key, value in changes.items() if key not in stated}
        config = config.with_values(changes)
        notes += [f"--shrink: {key.removeprefix('trimtab.')} is {value}" for key, value in changes.items()]
    if settings.device == "cpu":
        config, said = cpu_form(config)
        notes += said
    config, said = fit_world(config, world)
    return config, (*notes, *said)


def _asked_for(settings: Settings, config: Config) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if settings.learning_rate is not None:
        changes["optimizer.params.lr"] = settings.learning_rate
        if config.get("scheduler.params.warmup_max_lr") is not None:
            changes["scheduler.params.warmup_max_lr"] = settings.learning_rate
    if settings.warmup_steps is not None:
        if config.get("scheduler.params.warmup_num_steps") is None:
            raise UsageError(
                f"--warmup-steps: {config.name} has no scheduler with warmup_num_steps; set one with "
                "--set scheduler.type=WarmupLR"
            )
        # DeepSpeed's schedulers take the logarithm of this number: 2 is the least that works
        changes["scheduler.params.warmup_num_steps"] = max(2, settings.warmup_steps)
    for change in settings.changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {change}: write KEY=VALUE, such as --set zero_optimization.stage=2")
        changes[key] = _value(text)
    return changes


def _refuse_unknown(settings: Settings, config: Config) -> None:
    """A key that ``--set`` names and nothing reads: the run would be another than the one asked for."""
    asked = {change.partition("=")[0] for change in settings.changes}
    if not asked:
        return
    from trimtab.check import check

    for finding in check(config.raw, select=UNREAD).findings:
        if finding.dotted in asked:
            raise UsageError(f"--set {finding.dotted}: {finding.message} [{finding.code}]")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def as_mapping(settings: Settings) -> Mapping[str, Any]:
    """The settings as plain JSON values."""
    return asdict(settings)
