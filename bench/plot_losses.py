"""Draw the losses of the real runs under bench/data into docs/real_text_loss.svg."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent
DATA, PICTURE = ROOT / "bench" / "data", ROOT / "docs" / "real_text_loss.svg"
RUNS = {"GPT-2, 124M": "gpt2_real_text", "LLaMA 7B": "llama_7b_real_text"}


def main() -> int:
    matplotlib.rcParams.update({"svg.hashsalt": "trimtab", "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for title, name in RUNS.items():
        text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=title)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
