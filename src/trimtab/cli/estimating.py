"""What ``trimtab estimate`` does, without the library that parses command lines.

That library takes longer to import than a job takes to count, so `quick` reads plain command lines itself and
leaves all others, help and mistakes included, to it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.cli.plain import plain
from trimtab.cli.settling import corrected_by_history, hold_to_the_engine, settle
from trimtab.estimate import estimate, to_json, with_run


def count(text: str) -> int:
    """A whole number above 0; ValueError for anything else."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


SWITCHES: Mapping[str, tuple[str, bool]] = {
    "--checkpoint-activations": ("checkpoint_activations", True),
    "--no-checkpoint-activations": ("checkpoint_activations", False),
    "--no-corrections": ("no_corrections", True),
    "--json": ("as_json", True),
}
FLAGS: Mapping[str, tuple[str, Any]] = {
    "--model": ("model", str),
    "--gpu": ("gpu", str),
    "--gpus-per-node": ("gpus_per_node", count),
    "--nodes": ("nodes", count),
    "--link": ("link", str),
    "--host-memory": ("host_memory", str),
    "--sequence-length": ("sequence_length", count),
    "--target-length": ("target_length", count),
    "--micro-batch": ("micro_batch", count),
    "--grad-accum": ("grad_accum", count),
    "--task": ("task", str),
    "--attention": ("attention", str),
    "--kernels": ("kernels", str),
    "--lora-r": ("lora_r", count),
    "--lora-targets": ("lora_targets", str),
    "--tokens": ("tokens", str),
    "--picture": ("picture", str),
}


def quick(arguments: Sequence[str]) -> int | None:
    """Runs a plain command line; None where it holds anything that only the parser can answer."""
    given = plain(arguments, FLAGS, SWITCHES)
    if given is None or len(given.paths) != 1:
        return None
    return run(given.paths[0], **given.options)


def run(
    config: str,
    *,
    tokens: str | None = None,
    no_corrections: bool = False,
    picture: str | None = None,
    as_json: bool = False,
    **flags: Any,
) -> int:
    """Answers and prints; ``flags`` are those of `trimtab.cli.settling.settle`."""
    if picture:
        from trimtab.report.picture_file import check_name, write_picture

        check_name(picture)
    settled, cluster, notes = settle(config, **flags)
    hold_to_the_engine(config, settled, cluster)
    answer = estimate(settled, cluster)
    if not no_corrections:
        answer = corrected_by_history(answer)
    if tokens is not None:
        from trimtab.units import parse_count

        answer = with_run(answer, parse_count(tokens))
    if picture:
        write_picture({**to_json(answer), "notes": list(notes)}, picture)
    if as_json:
        from trimtab.report import document

        text = document.to_json({**to_json(answer), "notes": list(notes)})
    else:
        from trimtab.report import paint
        from trimtab.report.estimate import estimate_text

        text = estimate_text(answer, notes, colour=paint.wants_colour(), columns=paint.width())
    sys.stdout.write(f"{text}\n")
    return 0 if answer.fits else 1
