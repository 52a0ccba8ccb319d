"""Feeds mutated configurations and bombs to the reader: no traceback, no hang, little memory.

    python bench/fuzz_reading.py --count 100000

Prints one JSON object; exits 1 if something raised, took more than 2 s of processor time, or if memory
passed 300 MB.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trimtab import source
from trimtab.errors import UsageError

MAX_SECONDS = 2.0
MAX_RSS_MB = 300

CONFIGS = Path(source.__file__).parent.parent / "data" / "configs"
LOOSE = b"""// DeepSpeed takes this
{
  train_batch_size: 128   # all
  'zero_optimization': {"stage": 2, overlap_comm: true,},
  optimizer: { type: "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999,]} }
  note: '''
    two
    lines
  '''
  device: cpu /* here */
}
"""
ACCELERATE = b"""# accelerate
compute_environment: LOCAL_MACHINE
deepspeed_config: &ds
  gradient_accumulation_steps: 4
  offload_optimizer_device: 'none'
  zero_stage: 3  # three
distributed_type: DEEPSPEED
mixed_precision: no
again: {<<: *ds, deepspeed_config_file: ds.json}
lr: 1e-5
list:
- a: |
    text
- [1, 2.5, {x: y}]
"""
TOKENS = (
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"'''", b"\\", b"\\u", b"//", b"/*", b"*/", b"#"),
    *(b"1e400", b"-", b"NaN", b"true", b"null", b"0x", b"017", b"1:30"),
    *(b"\n", b"\r", b"\t", b" ", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc2\x85"),
    *(b"- ", b"? ", b": ", b"&a ", b"*a", b"<<: *ds", b"!!python/object:os.system ", b"!!int x", b"---\n"),
    *(b"%YAML 1.1\n", b"| ", b">+\n", b"2024-13-45", b"\\UFFFFFFFF", b"\xe2\x80\xa8"),
    *(b"9" * 5_000, b"[" * 80, b"{a:" * 80),
)


@dataclass
class Outcome:
    """What happened: inputs read, how they ended, what raised, and the worst of time and memory."""

    count: int = 0
    raised: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    slowest_input: str = ""
    kinds: Counter[str] = field(default_factory=Counter)


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` inputs: (``json`` or ``yaml``, bytes)."""
    rng = random.Random(seed)
    configs = [path.read_bytes() for path in sorted(CONFIGS.rglob("*.json"))]
    seeds = [("json", data) for data in [*configs, LOOSE, LOOSE, LOOSE]] + [("yaml", ACCELERATE)] * 5
    for _ in range(count):
        how, data = rng.choice(seeds)
        if rng.random() < 0.02:
            how = "yaml" if how == "json" else "json"
        piece = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
            mutate(piece, rng)
        yield how, bytes(piece)


def mutate(piece: bytearray, rng: random.Random) -> None:
    """One change in place: a byte, a token, a stretch taken out, doubled or moved."""
    at = rng.randrange(len(piece) + 1)
    end = min(len(piece), at + rng.choice((1, 2, 5, 20, 200)))
    choice = rng.randrange(6)
    if choice == 0 and at < len(piece):
        piece[at] = rng.randrange(256)
    elif choice == 1:
        del piece[at:end]
    elif choice == 2:
        piece[at:at] = piece[at:end]
    elif choice == 3:
        stretch = piece[at:end]
        del piece[at:end]
        to = rng.randrange(len(piece) + 1)
        piece[to:to] = stretch
    elif choice == 4 and rng.random() < 0.1:
        del piece[at:]
    else:
        piece[at:at] = rng.choice(TOKENS)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Inputs that have hurt parsers: nesting, aliases, long numbers, long anything."""
    aliases = b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 9))
    yield "yaml", b"a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + aliases
    yield "yaml", b"a: &a [*a]\n"
    yield "yaml", b"<<: &a {<<: *a}\n"
    for opening in (b"[", b"{", b"- ", b"? ", b"{a: ", b"&a "):
        yield "yaml", opening * 100_000
        yield "json", opening * 1_000_000
    for piece in (
        b"\n",
        b" ",
        b"#\n",
        b"/**/",
        b"//\n",
        b"a",
        b"a:",
        b"a: 1\n",
        b'"a":1,',
        b"1,",
        b"'",
        b'"',
        b"\\'",
        b"\0",
    ):
        yield "json", piece * (9_900_000 // len(piece))
        yield "json", b'{"a": [' + piece * (9_900_000 // len(piece))
        yield "json", b"{'" + piece * (9_900_000 // len(piece))
        yield "yaml", piece * (63_000 // len(piece))
        yield "yaml", b"a: [" + piece * (63_000 // len(piece))
    yield "json", b'{"a": ' + b"9" * 9_000_000 + b"}"
    yield "json", b'{"a": 1.' + b"9" * 9_000_000 + b"e-5}"
    yield "yaml", b"a: " + b"9" * 63_000
    yield "yaml", b"a: " + b"9" * 63_000 + b"x"
    yield "yaml", b"a: " + b"1:" * 31_000 + b"x"
    yield "json", b"a: " + b"1_" * 4_000_000 + b"x"
    yield "json", b"a: " + b"/x" * 4_000_000
    yield "json", b"a: " + b" #" * 4_000_000
    yield "yaml", b"a: 0x" + b"f" * 63_000
    yield "json", b"{" + b",".join(b'"k%d": %d' % (i, i) for i in range(700_000)) + b"}"
    yield "json", b"{" + b",".join([b'"k": 1'] * 90_000) + b"}"
    yield "json", b"{" + b"\n".join([b"k: x # y"] * 49_000) + b"}"
    yield "json", b"x" * 30_000_000


def fuzz(inputs: Iterator[tuple[str, bytes]]) -> Outcome:
    """Reads every input, walks what came out, looks for a pointer and tries one edit."""
    outcome = Outcome()
    for how, data in inputs:
        outcome.count += 1
        start = time.process_time()
        try:
            read = source.read_bytes(data, file="fuzz", written=how)  # type: ignore[arg-type]
            outcome.kinds.update({problem.kind for problem in read.problems} or {"clean"})
            use(read)
        except Exception:  # noqa: BLE001  whatever comes is the finding
            outcome.raised.append(base64.b64encode(data[:3_000]).decode() + "\n" + traceback.format_exc())
        seconds = time.process_time() - start
        if seconds > outcome.slowest_seconds:
            outcome.slowest_seconds, outcome.slowest_input = seconds, f"{how} {data[:60]!r} {len(data)}"
    return outcome


def use(read: source.Source) -> None:
    """What every reader of a source does: paths, spans, the pointer, JSON out, an edit."""
    json.dumps(read.value, allow_nan=False)
    for path in list(read.spans)[:200]:
        span = read.spans[path].value
        assert 0 <= span.start <= span.end <= len(read.text), (path, span)
    for problem in read.problems:
        assert min(problem.line, problem.column) >= 1
        problem.message.encode("utf-8")
    source.find_pointer(read)
    if read.complete and len(read.text) < 20_000:
        try:
            text = source.set_value(read, ("zero_optimization", "stage"), 3)
        except UsageError:
            return
        again = source.read_text(text, written="yaml" if read.format == "yaml" else "json")
        assert again.value["zero_optimization"]["stage"] == 3


def main() -> int:
    """Runs the bombs and ``--count`` mutations; prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    outcomes = {"mutations": fuzz(mutated(options.count, options.seed)), "bombs": fuzz(bombs())}
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {
        name: {
            "count": outcome.count,
            "tracebacks": len(outcome.raised),
            "slowest_seconds": round(outcome.slowest_seconds, 3),
            "slowest_input": outcome.slowest_input,
            "problem_kinds": dict(outcome.kinds.most_common()),
        }
        for name, outcome in outcomes.items()
    }
    print(
        json.dumps(
            {**report, "peak_rss_mb": round(rss_mb), "seconds": round(time.perf_counter() - start)}, indent=2
        )
    )
    for outcome in outcomes.values():
        for text in outcome.raised[:5]:
            print(text[:600], "...", text[-900:], file=sys.stderr)
    worst = max(outcome.slowest_seconds for outcome in outcomes.values())
    return int(
        any(outcome.raised for outcome in outcomes.values()) or worst > MAX_SECONDS or rss_mb > MAX_RSS_MB
    )


if __name__ == "__main__":
    raise SystemExit(main())
