"""A model's architecture as a value, read once from its Hugging Face config."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.architecture import Fields, Kind, Norm, Positions, figures
from trimtab.errors import NotFound, UnknownArchitecture, UnreadableFile
from trimtab.folders import read_shipped
from trimtab.frozen import dataclass, field
from trimtab.hf_config import complete

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An architecture: the figures that parameters, memory and speed follow from.

    Sizes are counts of elements; ``hf`` is the completed Hugging Face config that all others were read from
    (equality of two models is equality of that).  ``intermediate_size`` is the width of one feed-forward
    matrix, also where there are two (``gated_mlp``).  ``layers`` counts the encoder's in an
    encoder-decoder; ``decoder_layers`` is 0 elsewhere.  Dropouts are probabilities.
    """

    name: str
    family: str
    model_type: str
    kind: Kind
    hf: Mapping[str, Any] = field(repr=False, hash=False)
    source: str = field(default="", repr=False, compare=False)

    hidden_size: int
    intermediate_size: int
    layers: int
    decoder_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    embedding_size: int
    max_positions: int
    type_vocab_size: int
    tied_embeddings: bool

    activation: str
    gated_mlp: bool
    norm: Norm
    positions: Positions
    rotary_dim: int
    parallel_residual: bool
    sliding_window: int | None
    sliding_layers: tuple[int, ...]
    """The places of those that look through ``sliding_window``."""
    unturned_layers: tuple[int, ...]
    """The places of those without rotary positions, in a model that has them."""
    logit_softcap: bool
    attention_softcap: bool

    embedding_dropout: float
    residual_dropout: float
    attention_dropout: float
    mlp_dropout: float
    classifier_dropout: float
    labels: int

    @property
    def longest_sequence(self) -> int | None:
        """The most tokens of a sample that can run: learned positions end, all others go on."""
        return self.max_positions if self.positions == "learned" and self.max_positions > 0 else None

    @property
    def all_layers(self) -> int:
        """Transformer layers, an encoder-decoder's in both stacks."""
        return self.layers + self.decoder_layers

    @classmethod
    def from_hf(cls, given: Mapping[str, Any], name: str = "", *, source: str = "") -> Model:
        """The model of a Hugging Face config, which need only hold what differs from its class's defaults.

        ``name`` is what messages and reports call it (default: the config's own ``_name_or_path`` or model
        type).  Raises UnknownArchitecture for a model type that the arithmetic does not know, UnreadableFile
        for a value that no model can have; both name the field.

        >>> Model.from_hf({"model_type": "llama", "num_hidden_layers": 2}).intermediate_size
        11008
        """
        where = name or str(given.get("_name_or_path") or given.get("model_type") or "the model's config")
        hf = complete(given, where=where)
        return cls(name=where, hf=MappingProxyType(hf), source=source, **figures(Fields(hf, where)))


@cache
def catalogue() -> Mapping[str, Mapping[str, Any]]:
    """The shipped models by canonical name: ``name``, ``family``, ``aliases``, ``source`` and ``hf``."""
    return MappingProxyType({row["name"]: MappingProxyType(row) for row in read_shipped("models.json")})


@cache
def _names() -> Mapping[str, str]:
    """Every spelling in the catalogue, lower case, with the canonical name it stands for."""
    table = {name.lower(): name for name in catalogue()}
    for name, row in catalogue().items():
        for alias in row["aliases"]:
            table.setdefault(alias.lower(), name)
    return table


def find_model(name_or_path: str | os.PathLike[str]) -> Model:
    """The model of a catalogue name, a Hugging Face id, or a path to a ``config.json`` or its folder.

    Nothing is downloaded: an id that is not in the catalogue is looked for in the local Hugging Face cache.
    An alias shares every shape with its model; its published config may differ in ``max_positions``.
    Raises NotFound with the nearest names, UnreadableFile or UnknownArchitecture.

    >>> find_model("meta-llama/Llama-2-70b-hf").kv_heads
    8
    """
    found = find_hf(name_or_path)
    where = found.source if found.name not in catalogue() else found.name
    try:
        return Model.from_hf(found.hf, found.name, source=found.source)
    except UnknownArchitecture as error:
        raise UnknownArchitecture(f"{where}: {str(error).partition(': ')[2]}") from None
    except UnreadableFile as error:
        raise UnreadableFile(f"{where}: {str(error).partition(': ')[2]}") from None


class HfConfig(NamedTuple):
    """A Hugging Face config as it was found, whatever its architecture."""

    name: str
    hf: Mapping[str, Any]
    source: str


def find_hf(name_or_path: str | os.PathLike[str]) -> HfConfig:
    """The Hugging Face config that `find_model` would read, also of an architecture that nobody here knows.

    Raises NotFound with the nearest names, or UnreadableFile.

    >>> find_hf("gpt2").hf["model_type"]
    'gpt2'
    """
    text = os.fspath(name_or_path)
    if not text.strip():
        raise NotFound("model", text, (), cure="Give a catalogue name, a Hugging Face id or a config.json.")
    canonical = _names().get(text.strip().lower().replace("_", "-")) or _names().get(text.strip().lower())
    if canonical:
        row = catalogue()[canonical]
        return HfConfig(name=canonical, hf=row["hf"], source=row["source"])
    from pathlib import Path  # the shipped models do not need it

    path = Path(text).expanduser()
    if path.is_dir():
        return _read(path / "config.json", name=path.resolve().name)
    if path.is_file():
        return _read(path, name=path.resolve().parent.name if path.name == "config.json" else path.stem)
    if path.suffix == ".json":
        raise UnreadableFile(f"{text}: there is no such file.")
    cached = _cached_config(text)
    if cached:
        return _read(cached, name=text)
    raise NotFound(
        "model",
        text,
        _names(),
        cure="Give a catalogue name, a Hugging Face id in the local cache (`hf download ID config.json` puts "
        "it there), or a path to a config.json.",
    )


def _read(path: Path, *, name: str) -> HfConfig:
    try:
        given = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UnreadableFile(f"{path.parent}: the folder holds no config.json.") from None
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}: is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise UnreadableFile(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if not isinstance(given, dict):
        raise UnreadableFile(f"{path}: holds a {type(given).__name__}, but a model's config is an object.")
    return HfConfig(name=name, hf=given, source=str(path))


def _cached_config(hub_id: str) -> Path | None:
    """The newest ``config.json`` of a Hub id in the local cache (huggingface_hub's folder layout)."""
    if hub_id.count("/") > 1 or not hub_id.strip("/"):
        return None
    from pathlib import Path

    home = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    root = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    repository = root / f"models--{hub_id.replace('/', '--')}"
    found = sorted(repository.glob("snapshots/*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
