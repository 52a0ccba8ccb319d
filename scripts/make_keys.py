"""Make ``src/trimtab/data/keys.json``: every configuration key by DeepSpeed release.

The published source archives are fetched with pip and read as syntax trees; nothing of them is imported.
What no program can read there (what a key is for, units, effects) stands in ``keys_extra.yaml`` with its
sources.

    python scripts/make_keys.py --cache ~/.cache/deepspeed-sources            # writes the table
    python scripts/make_keys.py --cache ~/.cache/deepspeed-sources --check    # exit 1 when it would change

pip runs an archive's own setup.py for its metadata, and some of those import torch: run this where torch is
installed.  0.11.0 and 0.11.1 also want pydantic<2 there; fetch these two into the cache from an environment
that has it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from keys_components import TYPES, read_optimizers, read_schedulers
from keys_merge import Entry, merge
from keys_sources import Release, fetch, published_versions, version_order
from keys_trace import Tracer

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "src" / "trimtab" / "data" / "keys.json"
OLDEST = "0.10.3"
SOURCE_NAME = "file:line in DeepSpeed's package, newest release that has the key"
Tables = dict[str, dict[str, Entry]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="directory for the source archives")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the table is out of date"
    )
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    extra = yaml.safe_load((HERE / "keys_extra.yaml").read_text(encoding="utf-8"))
    versions = [v for v in published_versions() if version_order(v) >= version_order(OLDEST)]
    text = render(make(versions, options.cache, extra))
    if options.check:
        return int(text != OUTPUT.read_text(encoding="utf-8"))
    OUTPUT.write_text(text, encoding="utf-8")
    print(f"{OUTPUT}: {len(text)} bytes, {len(versions)} releases", file=sys.stderr)
    return 0


def make(versions: list[str], cache: Path, extra: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Tables] = {}
    for version in versions:
        release = Release(version, fetch(version, cache))
        tables[version] = read(release, extra)
    check_sources(release, extra)
    kinds = tables[versions[0]]
    merged = {kind: merge(versions, {v: tables[v][kind] for v in versions}) for kind in kinds}
    keys = {path: finish(path, entry, merged, extra) for path, entry in merged["keys"].items()}
    undescribed = [path for path, entry in keys.items() if "does" not in entry and not is_old(path, keys)]
    if undescribed:
        raise SystemExit("add to keys_extra.yaml what these do: " + ", ".join(undescribed))
    stray = [path for path in [*extra["does"], *extra["facts"], *extra["notes"]] if path not in keys]
    if stray:
        raise SystemExit("keys_extra.yaml speaks of keys that no release reads: " + ", ".join(stray))
    return {
        "about": f"Made by scripts/make_keys.py; not to be edited. source: {SOURCE_NAME}.",
        "versions": versions,
        "auto": {who: fill["from"] for who, fill in extra["auto"].items()},
        "synonyms": extra["synonyms"],
        "sections": merged["sections"],
        "keys": dict(sorted(keys.items())),
        "optimizers": components(merged, "optimizer", extra),
        "schedulers": components(merged, "scheduler", extra),
    }


def read(release: Release, extra: dict[str, Any]) -> Tables:
    """All tables of one release."""
    trace = Tracer(release).run()
    keys = {rename(path, extra): entry for path, entry in trace.keys.items()}
    for path, fact in extra["elsewhere"].items():
        if fact["text"] in release.texts.get(fact["file"], "") and parent(path) in ("", *keys):
            keys[path] = {k: v for k, v in fact.items() if k not in ("file", "text", "from")}
            keys[path]["source"] = fact["from"]
    for path, entry in keys.items():
        settle(path, entry, keys, fact_for(release, extra["facts"].get(path, {})))
    sections = {rename(path, extra): {"unknown": policy} for path, policy in trace.sections.items()}
    for path, entry in keys.items():
        plain_dictionary = entry.get("typed") and "object" in entry["types"] and path not in sections
        if path in extra["open"] or plain_dictionary:
            sections[path] = {"unknown": "passed"}
    optimizers, optimizer_params = read_optimizers(release, extra)
    schedulers, scheduler_params = read_schedulers(release, extra)
    return {
        "keys": keys,
        "refused": trace.refused | refused_elsewhere(release, extra),
        "sections": sections,
        "optimizers": optimizers,
        "optimizer_params": optimizer_params,
        "schedulers": schedulers,
        "scheduler_params": scheduler_params,
    }


def refused_elsewhere(release: Release, extra: dict[str, Any]) -> dict[str, Entry]:
    return {
        path: {"source": fact["from"]}
        for path, fact in extra["refused"].items()
        if fact["text"] in release.texts[fact["file"]]
    }


def fact_for(release: Release, fact: Entry) -> Entry:
    """A fact with the choices that this release knows."""
    like = fact.get("choices_like")
    if like is None:
        return fact
    text = release.texts[like["file"]]
    return {**fact, "choices": [choice for choice in fact["choices"] if like["text"].format(choice) in text]}


def rename(path: str, extra: dict[str, Any]) -> str:
    head, dot, rest = path.partition(".")
    return extra["same_block"][head]["as"] + dot + rest if head in extra["same_block"] else path


def parent(path: str) -> str:
    return path.rpartition(".")[0]


def settle(path: str, entry: Entry, keys: dict[str, Entry], fact: Entry) -> None:
    """Give an entry its types: declared, else by hand, else those of its default; blocks have no default."""
    if any(other.startswith(path + ".") for other in keys):
        entry.pop("default", None)
        entry.setdefault("types", ["object"])
    if not entry.get("typed") and "types" in fact:
        entry["types"] = list(fact["types"])
    if "types" not in entry:
        entry["types"] = [TYPES.get(type(entry.get("default")), "any")]
    if "default" in entry and entry["default"] is None and not {"null", "any"} & set(entry["types"]):
        entry["types"] = [*entry["types"], "null"]
    for name in ("choices", "any_case", "ge", "gt", "le", "lt", "unit"):
        if name in fact:
            entry.setdefault(name, fact[name])


def finish(path: str, entry: Entry, merged: dict[str, dict[str, Entry]], extra: dict[str, Any]) -> Entry:
    """Add what was found by reading, and since when the mere presence of the key is refused."""
    made = dict(entry)
    refusal = merged["refused"].get(path)
    if refusal is not None:
        made["refused"] = refusal.get("since", OLDEST)
    aliases = [name for name, block in extra["same_block"].items() if block["as"] == path]
    if aliases:
        made["aliases"] = aliases
    fact = extra["facts"].get(path, {})
    by_hand = {
        name: fact["from"]
        for name in fact
        if name not in ("from", "choices_like") and name_is_hand(name, entry)
    }
    if by_hand:
        made["by_hand"] = by_hand
    fillers = [who for who, fill in extra["auto"].items() if path in fill["keys"]]
    if fillers:
        made["auto"] = fillers
    if path in extra["does"]:
        made["does"] = extra["does"][path]
    if path in extra["notes"]:
        made["notes"] = [split_note(note) for note in extra["notes"][path]]
    return made


def name_is_hand(name: str, entry: Entry) -> bool:
    """Declared types win over those by hand, in every era."""
    return name != "types" or not entry.get("typed")


def split_note(note: str) -> list[str]:
    text, _, place = note.rpartition(" [")
    return [text, place.removesuffix("]")]


def is_old(path: str, keys: dict[str, Entry]) -> bool:
    """Whether the key belongs to a feature that was removed whole, and is described with it."""
    above = parent(path)
    return bool(above) and ("removed" in keys.get(above, {}) or is_old(above, keys))


def components(merged: dict[str, dict[str, Entry]], kind: str, extra: dict[str, Any]) -> dict[str, Entry]:
    """The optimizers or schedulers, each with its parameters."""
    made: dict[str, Entry] = {}
    for name, known in extra[f"{kind}s"].items():
        entry = merged[f"{kind}s"][name]
        if kind == "scheduler":
            known = {"name": name, "does": known}
        about = {key: known[key] for key in ("name", "does", "unknown") if key in known}
        if known.get("open"):
            about["unknown"] = "passed"
        made[name] = {**about, **entry, "params": {}}
    for path, entry in merged[f"{kind}_params"].items():
        name, _, parameter = path.partition(".")
        fact = extra["param_facts"].get(parameter, {})
        hand = {key: value for key, value in fact.items() if key != "from"}
        filled = {**entry, **hand, "does": extra["params_do"][parameter]}
        if hand:
            filled["by_hand"] = dict.fromkeys(hand, fact["from"])
        fillers = [who for who, fill in extra["auto"].items() if f"{kind}.params.{parameter}" in fill["keys"]]
        if fillers:
            filled["auto"] = fillers
        if made[name].get("since") == filled.get("since"):
            filled.pop("since", None)
        if made[name].get("removed") == filled.get("removed"):
            filled.pop("removed", None)
        made[name]["params"][parameter] = filled
    return made


def check_sources(release: Release, extra: dict[str, Any]) -> None:
    """Every place that keeps a fact by hand must exist in the newest release."""
    for place in hand_sources(extra):
        path, _, line = place.partition(":")
        if path not in release.texts or int(line) > len(release.texts[path].splitlines()):
            raise SystemExit(f"keys_extra.yaml: DeepSpeed {release.version} has no {place}")


def hand_sources(extra: dict[str, Any]) -> list[str]:
    facts = [
        fact
        for group in ("same_block", "open", "elsewhere", "refused", "facts")
        for fact in extra[group].values()
    ]
    facts += [
        fact for known in extra["optimizers"].values() for fact in [known, *known.get("params", {}).values()]
    ]
    facts += extra["param_facts"].values()
    notes = [split_note(note)[1] for group in extra["notes"].values() for note in group]
    return [fact["from"] for fact in facts if "from" in fact] + notes


def render(table: dict[str, Any]) -> str:
    """JSON with one key a line: small to load, and a change shows as a line."""
    parts = []
    for name, value in table.items():
        if isinstance(value, dict):
            lines = [f"{json.dumps(key)}:{compact(entry)}" for key, entry in value.items()]
            parts.append(f"{json.dumps(name)}:{{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(name)}:{compact(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    raise SystemExit(main())
