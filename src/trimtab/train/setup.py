"""What stands before the first step: the configuration, the model's config and the data, settled and
checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.config import Batch, Config
from trimtab.errors import RefusedConfig, UnreadableFile, Unsupported, UsageError
from trimtab.model import Model
from trimtab.parameters.parallel import check_parallel
from trimtab.train.checkpoint import digest_of, needed_bytes
from trimtab.train.data.prepare import DataRequest, Prepared, prepare
from trimtab.train.data.samples import SampleMaker, sample_makers
from trimtab.train.data.tokenizer import load_tokenizer, set_token_ids
from trimtab.train.folder import RunFolder, check_disk
from trimtab.train.model import (
    Build,
    count_parameters,
    prepare_config,
    quiet_transformers,
    read_model_config,
)
from trimtab.train.settings import SHRUNKEN_VOCABULARY, Settings, effective_config
from trimtab.train.shrink import shrink

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A run, ready to build: all ranks come to the same one."""

    config: Config
    batch: Batch
    hf: Any
    build: Build
    prepared: Prepared
    training: SampleMaker
    validation: SampleMaker
    steps: int
    model_digest: str
    """SHA-256 of what makes the model this one; taken before training, which writes into the config."""
    notes: tuple[str, ...]

    @property
    def data_digest(self) -> str:
        """SHA-256 of the stored tokens."""
        return str(self.prepared.store.facts["digest"])

    def replica_of(self, rank: int) -> int:
        """Which replica ``rank`` has a part of: neighbours share one (utils/groups.py:150-175)."""
        return rank // self.config.data_parallel_divisor

    @property
    def saves_frozen(self) -> bool:
        """Whether checkpoints hold frozen weights: not if they come from pretrained weights and adapters
        are trained.
        """
        return not (self.config.job.lora and self.build.pretrained and self.config.stage < 3)


def set_up(settings: Settings, folder: RunFolder, *, world: int, resuming: bool = False) -> Setup:
    """Settle everything that needs no process group; prepares the data if that is not done yet.

    ``resuming`` refuses data other than those that the folder's run began with.

    Raises:
        TrimtabError: whatever the user has to mend; one message with the cure.
    """
    config, notes = effective_config(settings, world=world)
    batch = config.batch(world)
    if config.optimizer_type is None:
        raise UsageError(f'{config.name} has no "optimizer" with a "type": training needs one, such as AdamW')
    model = settings.pretrained or config.job.model
    if model is None:
        raise UsageError(
            f'{config.name} names no model: put "trimtab": {{"model": …}} in it or --set trimtab.model=NAME'
        )
    quiet_transformers()
    hf = read_model_config(model)
    if settings.shrink:
        if settings.pretrained:
            raise UsageError(
                "--shrink makes a small model with random weights; --from gives weights: choose one"
            )
        hf = shrink(hf, vocab_size=_shrunken_vocabulary(settings.tokenizer))
    _check_split(config, hf, world)
    tokenizer = settings.tokenizer or _own_tokenizer(settings.pretrained)
    request = DataRequest(
        sources=settings.data,
        text_field=settings.text_field,
        target_field=settings.target_field,
        label_field=settings.label_field,
        prefix=settings.prefix,
        tokenizer=tokenizer,
    )
    prepared = prepare(
        request,
        config.job,
        model_type=hf.model_type,
        vocab_size=hf.vocab_size,
        data=folder.data,
        tokenizer_folder=folder.tokenizer,
        keep=resuming,
    )
    if settings.pretrained is None:
        set_token_ids(hf, prepared.tokenizer)
    labels = None if prepared.labels is None else len(prepared.labels)
    said = prepare_config(hf, config.job, labels=labels)
    if prepared.labels is not None:
        hf.id2label = dict(enumerate(prepared.labels))
        hf.label2id = {name: number for number, name in enumerate(prepared.labels)}
    training, validation = sample_makers(
        prepared, config.job, seed=settings.seed, validation=settings.validation
    )
    steps = _steps(settings, config, batch, len(training))
    return Setup(
        config=config,
        batch=batch,
        hf=hf,
        build=Build(pretrained=settings.pretrained, freeze=settings.freeze),
        prepared=prepared,
        training=training,
        validation=validation,
        steps=steps,
        model_digest=_model_digest(hf, config),
        notes=(*notes, *prepared.notes, *said, *_warnings(settings, config, steps)),
    )


def _check_split(config: Config, hf: Any, world: int) -> None:
    """Refuse what would not train as one GPU does.

    Raises:
        RefusedConfig: the ranks do not divide.
        Unsupported: a way to split a replica that does not train here; names the reason.
    """
    shares = config.data_parallel_divisor
    if world % shares:
        raise RefusedConfig(
            f"{config.name}: {shares} ranks share a replica of the model, and {world} do not divide by that; "
            f"start {max(1, world // shares) * shares}"
        )
    if config.job.pipeline_stages > 1:
        raise Unsupported(
            f"{config.name}: trimtab.pipeline_stages needs a script that builds a PipelineModule, which "
            "`trimtab train` is not: set it to 1"
        )
    if shares > 1:
        check_parallel(config, Model.from_hf(hf.to_dict(), config.job.model or ""))


def check_room(setup: Setup, settings: Settings, folder: RunFolder) -> tuple[int, int]:
    """Parameters and trained parameters; refuses a run whose checkpoints do not fit the disk.

    Raises:
        UsageError: too little disk is free.
    """
    parameters, trainable = count_parameters(setup.config, setup.hf, setup.build)
    needed = needed_bytes(
        parameters, trainable, parameter_bytes=setup.config.parameter_bytes, keep=settings.keep
    )
    check_disk(folder.path, needed, what=f"{settings.keep} checkpoints, one being written, and the model")
    return parameters, trainable


def _model_digest(hf: Any, config: Config) -> str:
    passing = ("transformers_version", "dtype", "use_cache")
    values = {key: value for key, value in hf.to_dict().items() if key not in passing}
    return digest_of(values | {"task": config.job.task, "lora": str(config.job.lora)})


def _shrunken_vocabulary(tokenizer: str | None) -> int:
    if tokenizer is None:
        return SHRUNKEN_VOCABULARY
    return -(-len(load_tokenizer(tokenizer)) // 8) * 8  # a multiple of 8, which DeepSpeed asks for


def _own_tokenizer(pretrained: str | None) -> str | None:
    """The tokenizer that comes with pretrained weights."""
    if pretrained is None:
        return None
    path = Path(pretrained)
    if path.is_dir() and not any((path / name).exists() for name in TOKENIZER_FILES):
        raise UnreadableFile(
            f"--from {pretrained}: the folder has weights but no tokenizer; give --tokenizer PATH"
        )
    return pretrained


def _steps(settings: Settings, config: Config, batch: Batch, samples: int) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.tokens is not None:
        return max(1, math.ceil(settings.tokens / (batch.train * config.job.sequence_length)))
    return max(1, math.ceil((settings.epochs or 1) * samples / batch.train))


def _warnings(settings: Settings, config: Config, steps: int) -> Iterator[str]:
    """What will run and yet is hardly what anyone wants."""
    warmup = config.get("scheduler.params.warmup_num_steps", 0)
    if warmup >= steps:
        yield (
            f"the learning rate warms up over {warmup} steps but the run has {steps}: it never reaches its "
            f"full value (--warmup-steps {max(2, steps // 10)})"
        )
    if config.job.lora is not None and settings.pretrained is None:
        yield (
            "LoRA trains adapters over random weights here, which learns next to nothing: "
            "--from FOLDER starts from pretrained ones"
        )


def write_effective(setup: Setup, folder: RunFolder) -> None:
    """Write the configuration that really runs into the folder."""
    raw: dict[str, Any] = dict(setup.config.raw)
    folder.config.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
