"""Pictures of memory: what they show is what the answer says, and every word of them can be read."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from trimtab import catalogue
from trimtab.cli.main import main
from trimtab.cluster import Cluster
from trimtab.drawing.shapes import INKS, Drawing, Rectangle, Words, to_svg, width_of
from trimtab.estimate import estimate, to_json
from trimtab.rehearse.course import course
from trimtab.report.memory_chart import course_text
from trimtab.report.memory_page import memory_page
from trimtab.report.memory_picture import COLOURS, OUTSIDE, UNDIVIDED, _on, bars, picture, verdict
from trimtab.units import GIB

Capture = pytest.CaptureFixture[str]
Document = dict[str, Any]


def answer(name: str, gpu: str | None = None, **values: int) -> Document:
    hardware = catalogue.card(name).hardware
    cluster = Cluster.of(gpu or hardware.gpu, hardware.gpus_per_node, hardware.nodes)
    return dict(to_json(estimate(catalogue.load_config(name).with_values(values), cluster)))


def rehearsed(name: str, **changes: Any) -> Document:
    """The estimate of ``name`` as if a phantom had seen the same, with a course of two micro steps."""
    found = answer(name)
    parts = [part["name"] for part in found["gpu"]["parts"]]
    sizes = [part["bytes"] for part in found["gpu"]["parts"]]
    rows = [[size * height // 10 for size in sizes] for height in (5, 7, 10, 6, 5, 8, 9, 5)]
    phases = [("forward", 0.0), ("backward", 0.25), ("step", 0.49), ("forward", 0.5), ("backward", 0.75)]
    return {
        **found,
        "method": "phantom",
        "predicted": found,
        "course": {
            "parts": parts,
            "rows": rows,
            "phases": [{"name": name, "begins_at": at} for name, at in phases],
        },
        "out_of_memory": None,
        **changes,
    }


SHORT: Mapping[str, Any] = {
    "message": "CUDA out of memory.",
    "memory": "gpu",
    "step": 2,
    "phase": "backward",
    "asked_bytes": 2 * GIB,
    "allocated_bytes": 37 * GIB,
    "reserved_bytes": 38 * GIB,
    "module": "model.layers.<3>",
    "module_class": "LlamaMLP",
    "frame": "modeling_llama.py:182 in forward",
}


def documents() -> dict[str, Document]:
    short = rehearsed("gpt2_baseline", out_of_memory=SHORT, fits=False, method="rehearsal", course=None)
    short["gpu"] = {**short["gpu"], "parts": [], "phases": short["gpu"]["phases"][:2]}
    return {
        "fits": answer("llama_7b_single_node"),
        "too small a card": answer(
            "gpt_neox_20b_zero3", "t4", train_micro_batch_size_per_gpu=8, gradient_accumulation_steps=2
        ),
        "too little host memory": answer("llama_13b_zero3_offload", "rtx4090"),
        "much too large a card": answer("bert_base_finetuning", "h200"),
        "phantom": rehearsed("llama_7b_single_node"),
        "ran out": short,
    }


DOCUMENTS = documents()
each = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=list(DOCUMENTS))


def box(words: Words) -> tuple[float, float, float, float]:
    width = width_of(words.text, words.size)
    left = words.x - {"start": 0.0, "middle": width / 2, "end": width}[words.anchor]
    return left, words.y - words.size * 0.75, left + width, words.y + words.size * 0.2


@each
def test_no_words_lie_on_others_or_leave_the_picture(document: Document) -> None:
    drawing = picture(document)
    boxes = [(words.text, box(words)) for words in drawing.shapes if isinstance(words, Words)]
    assert len(boxes) > 15
    for text, (left, top, right, bottom) in boxes:
        inside = left >= 0 and top >= 0 and right <= drawing.width and bottom <= drawing.height
        assert inside, text
    for (one, a), (other, b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (one, other)


def segments(drawing: Drawing, of: str) -> list[Rectangle]:
    return [
        shape
        for shape in drawing.shapes
        if isinstance(shape, Rectangle) and shape.title.startswith(f"{of}: ")
    ]


@each
def test_bars_are_as_long_as_what_they_say(document: Document) -> None:
    drawing = picture(document)
    (bar, *_) = bars(document)
    found = segments(drawing, bar.name)
    names = [re.sub(r"^.*?: (.*) \S+ \S+$", r"\1", one.title) for one in found]
    assert names == list(bar.parts)
    sizes = list(bar.parts.values())
    # a pixel lies between two parts
    scales = [(one.width + 1) / size for one, size in zip(found, sizes, strict=True) if one.width > 3]
    assert max(scales) == pytest.approx(min(scales), rel=0.001)
    assert sum(bar.parts.values()) == pytest.approx(bar.needed, rel=0.01)
    for one, after in pairwise(found):
        assert one.x + one.width <= after.x + 0.01


def test_both_bars_have_the_same_order() -> None:
    predicted, seen = bars(DOCUMENTS["phantom"])
    assert list(predicted.parts) == list(seen.parts)
    assert next(iter(predicted.parts)) == "parameters"
    assert list(predicted.parts)[-1] == OUTSIDE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fits", r"fits: 3[234]\.\d GiB of 39\.4 GiB needed \(predicted\)"),
        ("too small a card", r"does not fit: .* of 14\.8 GiB, .* host memory a node needed \(predicted\)"),
        ("too little host memory", r"does not fit: .* of 128\.0 GiB host memory a node needed \(predicted\)"),
        ("phantom", r"fits: .* \(phantom rehearsal\)"),
        ("ran out", "does not fit: GPU memory ran out in backward"),
    ],
)
def test_the_verdict_names_what_decides(name: str, said: str) -> None:
    assert re.fullmatch(said, verdict(DOCUMENTS[name]))


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*COLOURS.values(), UNDIVIDED])
def test_figures_stand_out_on_every_part(colour: str) -> None:
    assert contrast(colour, _on(colour)) >= 4.5


@pytest.mark.parametrize("ink", ["ink", "soft", "good", "bad"])
@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
def test_words_stand_out_on_the_ground(ink: str, which: int) -> None:
    assert contrast(INKS[ink][which], INKS["ground"][which]) >= 4.5


@each
def test_the_svg_is_whole_and_needs_nothing_else(document: Document) -> None:
    text = to_svg(picture(document))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("http") == 1
    assert "prefers-color-scheme:dark" in text
    assert float(root.attrib["height"]) > 200


class Page(HTMLParser):
    """Open elements, and everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@each
def test_the_page_is_whole_and_needs_nothing_else(document: Document) -> None:
    text = memory_page(document)
    read = Page()
    read.feed(text)
    assert (read.open, read.fetched) == ([], [])
    assert "url(" not in text
    assert "<script" not in text
    assert document["config"] in read.text
    assert all(one in read.text for one in document["assumptions"])
    assert all(f'<p class="bad">{one}</p>' in text for one in document.get("warnings", ()))


@each
def test_what_is_wider_than_a_phone_scrolls_in_a_frame(document: Document) -> None:
    text = memory_page(document)
    for part in ("<svg", "<table"):
        assert text.count(part) == text.count(f'<div class="wide">{part}') > 0


def test_the_page_tells_where_memory_ran_out() -> None:
    text = memory_page(DOCUMENTS["ran out"])
    assert "model.layers.&lt;3&gt; (LlamaMLP)" in text
    assert "modeling_llama.py:182 in forward" in text


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs trimtab[pictures]")
def test_a_png_has_the_pictures_form(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "memory.png"
    assert main(["estimate", "gpt2_baseline", "--picture", str(file), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    drawing = picture(answer("gpt2_baseline"))
    assert width / height == pytest.approx(drawing.width / drawing.height, rel=0.01)


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_estimate_draws_beside_its_answer(tmp_path: Path, capsys: Capture, ending: str) -> None:
    file = tmp_path / f"memory.{ending}"
    assert main(["estimate", "gpt2_baseline", "--picture", str(file)]) == 0
    assert "fits" in capsys.readouterr().out
    assert "gpt2_baseline on 4 × a100-40gb" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memory.pdf", "must end in .svg, .png or .html"),
        ("nowhere/memory.svg", "there is no folder nowhere"),
    ],
)
def test_a_file_that_cannot_be_drawn_is_refused_first(name: str, said: str, capsys: Capture) -> None:
    assert main(["estimate", "no_such_configuration", "--picture", name]) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "memory.svg").mkdir()
    assert main(["estimate", "gpt2_baseline", "--picture", str(tmp_path / "memory.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# -- over the step ------------------------------------------------------------


def test_the_chart_reaches_its_peak_and_fits_a_terminal() -> None:
    text = course_text(DOCUMENTS["phantom"])
    assert text is not None
    lines = text.plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.findall(r"\w+", lines[1]) == ["forward", "backward", "forward", "backward"]
    assert lines[2].split()[:2] == ["28.7", "GiB"]
    assert "█" * 8 in lines[2]
    assert course_text(DOCUMENTS["fits"]) is None


class Piece:
    """An allocation as the ledger keeps it."""

    def __init__(self, size: int, born: int, died: int, part: str, host: bool = False) -> None:
        self.size, self.born, self.died, self.part, self.host = size, born, died, part, host


def test_a_course_loses_no_peak() -> None:
    pieces = [
        Piece(100, 1, 10**9, "parameters"),
        Piece(5, 2, 40, "activations"),
        *(Piece(7 * n, 100 + n, 160 - n, "activations") for n in range(1, 20)),
        Piece(1000, 130, 131, "temporaries"),
        Piece(10**6, 1, 10**9, "parameters", host=True),
        Piece(10**6, 1, 50, "parameters"),
    ]

    def alive(at: int) -> int:
        return sum(one.size for one in pieces if not one.host and one.born <= at < one.died)

    found = course(
        pieces,  # type: ignore[arg-type]
        lambda one: one.part,  # type: ignore[attr-defined]
        first=100,
        last=200,
        borders=[("forward", 100), ("backward", 150)],
        points=10,
    )
    totals = [sum(row) for row in found.rows]
    assert len(totals) == 10
    assert max(totals) == max(alive(at) for at in range(100, 201))
    for span, total in enumerate(totals):
        assert total == max(alive(at) for at in range(100 + span * 10, 100 + span * 10 + 11))
    assert found.phases == (("forward", 0.0), ("backward", 0.5))
    assert set(found.parts) == {"parameters", "activations", "temporaries"}
