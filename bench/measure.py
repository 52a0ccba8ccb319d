"""Measure memory on a GPU: small and middling jobs of every kind under the real DeepSpeed engine.

    python bench/measure.py --output bench/data/h200_memory.jsonl      on a machine with a GPU
    python bench/measure.py --list                                      what would run, with what is predicted

Every case runs in a process of its own as rank 0 of its world through torch's fake process group
(scripts/prove_on_gpu.py does the measuring); several share the card, since PyTorch's allocator counts each
process alone.  Step times of cases that shared it are not kept.  One JSON line a case; stops after three
failures in a row.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

GIB = 2**30
BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True, "initial_scale_power": 8}}
CPU = {"device": "cpu", "pin_memory": True}


def llama(hidden, inner, layers, heads, kv, words, **more):
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": words,
        "max_position_embeddings": 16384, **more,
    }  # fmt: skip


def gpt2(width, layers, heads, words=50257):
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": words,
            "n_positions": 2048}  # fmt: skip


def bert(hidden, inner, layers, heads, words=30522, kind="bert"):
    return {"model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "vocab_size": words, "max_position_embeddings": 514}  # fmt: skip


def t5(width, inner, layers, heads, kv=64, **more):
    return {"model_type": "t5", "d_model": width, "d_ff": inner, "num_layers": layers, "num_heads": heads,
            "d_kv": kv, "vocab_size": 32128, "decoder_start_token_id": 0, "pad_token_id": 0, **more}  # fmt: skip


MODELS = {
    "llama-s": llama(1536, 4096, 12, 12, 4, 50000),
    "llama-m": llama(2560, 6912, 16, 20, 20, 32000),
    "llama-wide": llama(4096, 14336, 4, 32, 8, 128256),
    "llama-thin": llama(1024, 2816, 40, 16, 16, 8000),
    "mistral": {**llama(2048, 7168, 10, 16, 8, 32000), "model_type": "mistral", "sliding_window": None},
    "qwen2": {**llama(1536, 8960, 10, 12, 2, 151936, tie_word_embeddings=True), "model_type": "qwen2"},
    "qwen3": {**llama(1024, 3072, 12, 16, 8, 100000, head_dim=128), "model_type": "qwen3"},
    "gemma": {**llama(1536, 8192, 8, 8, 1, 64000, head_dim=192), "model_type": "gemma"},
    "phi": {**llama(1536, 6144, 12, 24, 24, 51200), "model_type": "phi"},
    "gpt2-s": gpt2(768, 8, 12),
    "gpt2-m": gpt2(1280, 20, 20),
    "gptj": {"model_type": "gptj", "n_embd": 1536, "n_layer": 8, "n_head": 12, "rotary_dim": 64,
             "vocab_size": 50400, "n_positions": 2048},  # fmt: skip
    "neox": {"model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 10,
             "num_attention_heads": 16, "vocab_size": 50432, "max_position_embeddings": 4096},  # fmt: skip
    "opt": {"model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 10,
            "num_attention_heads": 16, "vocab_size": 50272, "max_position_embeddings": 2048,
            "word_embed_proj_dim": 1024},  # fmt: skip
    "bert-b": bert(768, 3072, 12, 12),
    "bert-l": bert(1024, 4096, 18, 16),
    "roberta": bert(768, 3072, 8, 12, 50265, "roberta"),
    "t5-b": t5(768, 3072, 8, 12),
    "t5-g": t5(1024, 2816, 8, 16, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}  # fmt: skip


def case(name, model, world, zero, *, precision=BF16, task="causal-lm", seq=1024, mbs=2, gas=1, **more):
    block = {
        "task": task,
        "sequence_length": seq,
        "attention": more.pop("attention", "sdpa"),
        "checkpoint_activations": more.pop("ckpt", False),
    }
    for key in ("lora", "target_length"):
        if key in more:
            block[key] = more.pop(key)
    config = {
        "train_micro_batch_size_per_gpu": mbs,
        "gradient_accumulation_steps": gas,
        "zero_optimization": zero,
        **precision,
        "optimizer": more.pop("optimizer", {"type": "AdamW", "params": {"lr": 1e-5}}),
        **more,
        "trimtab": block,
    }
    return {"id": name, "hf": MODELS[model], "world": world, "config": config}


def chosen() -> Iterator[dict]:
    """Cases picked by hand: every wrapper, offload, precision and family at least once."""
    yield case("llama-s-z0-bf16", "llama-s", 1, {"stage": 0})
    yield case("llama-s-z0-bf16-w4", "llama-s", 4, {"stage": 0}, gas=2)
    yield case("llama-s-z0-fp16", "llama-s", 4, {"stage": 0}, precision=FP16)
    yield case("llama-s-z0-fp32", "llama-s", 2, {"stage": 0}, precision={})
    yield case("llama-s-z1-fp32", "llama-s", 4, {"stage": 1}, precision={})
    yield case("llama-s-z2-fp32-ckpt", "llama-s", 4, {"stage": 2}, precision={}, ckpt=True)
    yield case("llama-s-z3-fp32", "llama-s", 4, {"stage": 3}, precision={}, mbs=1)
    yield case("llama-s-z1-fp32accum", "llama-s", 4, {"stage": 1}, data_types={"grad_accum_dtype": "fp32"})
    yield case("llama-s-z2-fp32accum", "llama-s", 4, {"stage": 2}, data_types={"grad_accum_dtype": "fp32"}, gas=2)
    yield case("llama-s-z3-fp32accum", "llama-s", 4, {"stage": 3}, data_types={"grad_accum_dtype": "fp32"})
    yield case("llama-s-z1-gas4", "llama-s", 8, {"stage": 1}, gas=4, mbs=1)
    yield case("llama-s-z1-overlap-gas2", "llama-s", 8, {"stage": 1, "overlap_comm": True}, gas=2, mbs=1)
    yield case("llama-m-z2-gas4", "llama-m", 4, {"stage": 2, "overlap_comm": True}, gas=4, mbs=1, ckpt=True)
    yield case("llama-m-z2-offload", "llama-m", 4, {"stage": 2, "offload_optimizer": CPU}, mbs=1)
    yield case("llama-m-z2-offload-gas2", "llama-m", 8, {"stage": 2, "offload_optimizer": CPU}, mbs=1, gas=2)
    yield case("llama-m-z1-offload", "llama-m", 8, {"stage": 1, "offload_optimizer": CPU}, mbs=1, ckpt=True)
    yield case("llama-m-z3-offload", "llama-m", 8, {"stage": 3, "offload_optimizer": CPU}, mbs=1, ckpt=True)
    yield case("llama-m-z3-offload-gas2", "llama-m", 8, {"stage": 3, "offload_optimizer": CPU}, gas=2, ckpt=True)
    yield case("llama-m-z3-both", "llama-m", 8, {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
               ckpt=True)  # fmt: skip
    yield case("llama-m-z3-param", "llama-m", 8, {"stage": 3, "offload_param": CPU}, ckpt=True)
    yield case("llama-m-z3-buckets", "llama-m", 16, {"stage": 3, "reduce_bucket_size": 20_000_000,
               "stage3_prefetch_bucket_size": 5_000_000, "stage3_param_persistence_threshold": 10_000,
               "stage3_max_live_parameters": 100_000_000, "stage3_max_reuse_distance": 100_000_000})  # fmt: skip
    yield case("llama-m-z3-subgroup", "llama-m", 4, {"stage": 3, "sub_group_size": 50_000_000}, ckpt=True)
    yield case("llama-m-z3-hpz", "llama-m", 16, {"stage": 3, "zero_hpz_partition_size": 8}, ckpt=True)
    yield case("llama-wide-z2-ckpt", "llama-wide", 16, {"stage": 2}, ckpt=True, mbs=1)
    yield case("llama-wide-z3", "llama-wide", 32, {"stage": 3}, mbs=1)
    yield case("llama-thin-z2-long-ckpt", "llama-thin", 8, {"stage": 2, "reduce_bucket_size": 50_000_000},
               seq=8192, mbs=1, ckpt=True)  # fmt: skip
    yield case("llama-thin-z3-long-ckpt", "llama-thin", 8, {"stage": 3, "reduce_bucket_size": 50_000_000},
               seq=12288, mbs=1, ckpt=True)  # fmt: skip
    yield case("llama-thin-z1-long", "llama-thin", 8, {"stage": 1, "reduce_bucket_size": 50_000_000}, seq=4096,
               mbs=1)  # fmt: skip
    yield case("llama-s-eager", "llama-s", 4, {"stage": 2}, attention="eager", mbs=2)
    yield case("llama-s-eager-ckpt", "llama-s", 4, {"stage": 2, "reduce_bucket_size": 10_000_000},
               attention="eager", mbs=2, ckpt=True)  # fmt: skip
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    wide = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
            "up_proj", "down_proj"]}  # fmt: skip
    yield case("llama-m-lora-z0", "llama-m", 4, {"stage": 0}, lora=lora)
    yield case("llama-m-lora-z2", "llama-m", 4, {"stage": 2}, lora=lora)
    yield case("llama-m-lora-z2-ckpt-wide", "llama-m", 4, {"stage": 2}, lora=wide, ckpt=True, mbs=4)
    yield case("llama-m-lora-z3", "llama-m", 8, {"stage": 3}, lora=lora, mbs=1)
    yield case("llama-m-lora-z3-ckpt", "llama-m", 8, {"stage": 3}, lora=wide, ckpt=True, mbs=4)
    for name in ("mistral", "qwen2", "qwen3", "gemma", "phi", "neox", "opt"):
        yield case(f"{name}-z1", name, 4, {"stage": 1, "reduce_bucket_size": 50_000_000})
        yield case(f"{name}-z3-ckpt", name, 8, {"stage": 3, "reduce_bucket_size": 50_000_000}, ckpt=True)
    yield case("gptj-z2", "gptj", 4, {"stage": 2}, attention="eager", mbs=2)
    yield case("gptj-z2-ckpt", "gptj", 4, {"stage": 2}, attention="eager", mbs=2, ckpt=True)
    yield case("gpt2-s-z1-fp16", "gpt2-s", 4, {"stage": 1}, precision=FP16, mbs=8)
    yield case("gpt2-s-z2-tiny-vocabulary-bucket", "gpt2-s", 4, {"stage": 2, "reduce_bucket_size": 3_000_000})
    yield case("gpt2-m-z3", "gpt2-m", 4, {"stage": 3}, mbs=2)
    yield case("gpt2-m-z2-ckpt", "gpt2-m", 4, {"stage": 2}, mbs=4, ckpt=True)
    yield case("gpt2-m-z2-offload-fp16", "gpt2-m", 4, {"stage": 2, "offload_optimizer": CPU}, precision=FP16)
    for stage, world in ((0, 1), (1, 4), (2, 4), (3, 4)):
        yield case(f"bert-l-mlm-z{stage}", "bert-l", world, {"stage": stage}, task="masked-lm", seq=128, mbs=48)
    yield case("bert-b-cls-z0-fp16", "bert-b", 1, {"stage": 0}, precision=FP16, seq=384, mbs=16,
               task="sequence-classification")  # fmt: skip
    yield case("bert-b-token-z1", "bert-b", 2, {"stage": 1}, seq=256, mbs=16, task="token-classification")
    yield case("bert-b-qa-z0-fp16", "bert-b", 1, {"stage": 0}, precision=FP16, seq=384, mbs=8,
               task="question-answering")  # fmt: skip
    yield case("bert-l-mlm-z2-ckpt", "bert-l", 8, {"stage": 2}, task="masked-lm", seq=512, mbs=16, ckpt=True)
    yield case("roberta-mlm-z2", "roberta", 4, {"stage": 2}, task="masked-lm", seq=256, mbs=16)
    yield case("bert-b-cls-eager", "bert-b", 1, {"stage": 0}, precision=FP16, seq=256, mbs=16, attention="eager",
               task="sequence-classification")  # fmt: skip
    for name in ("t5-b", "t5-g"):
        yield case(f"{name}-z0", name, 1, {"stage": 0}, task="seq2seq-lm", seq=512, target_length=128, mbs=4)
        yield case(f"{name}-z2-ckpt", name, 4, {"stage": 2}, task="span-corruption", seq=512, target_length=114,
                   mbs=8, ckpt=True)  # fmt: skip
        yield case(f"{name}-z3-both-ckpt", name, 8, {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
                   task="span-corruption", seq=512, target_length=114, mbs=2, ckpt=True)  # fmt: skip
    yield case("t5-b-z1-fp16", "t5-b", 2, {"stage": 1}, precision=FP16, task="seq2seq-lm", seq=256,
               target_length=64, mbs=8)  # fmt: skip
    yield case("t5-b-eager-z2", "t5-b", 2, {"stage": 2}, task="seq2seq-lm", seq=256, target_length=64, mbs=8,
               attention="eager")  # fmt: skip
    yield case("llama-s-sgd-z1", "llama-s", 4, {"stage": 1}, zero_allow_untested_optimizer=True,
               optimizer={"type": "SGD", "params": {"lr": 1e-3, "momentum": 0.9}})  # fmt: skip
    yield case("llama-s-lion-z2", "llama-s", 4, {"stage": 2}, optimizer={"type": "Lion", "params": {"lr": 1e-5}})
    yield case("llama-s-torch-adam-z2", "llama-s", 4, {"stage": 2},
               optimizer={"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True}})  # fmt: skip


def drawn(count: int, seed: int = 20261122) -> Iterator[dict]:
    """Cases drawn at random over models, stages, worlds, lengths, buckets and offload."""
    pick = random.Random(seed)
    causal = [name for name in MODELS if not name.startswith(("bert", "roberta", "t5", "gptj"))]
    for number in range(count):
        stage = pick.choice((1, 2, 2, 3, 3))
        zero: dict = {"stage": stage, "reduce_bucket_size": pick.choice((5, 20, 100, 500)) * 1_000_000}
        if pick.random() < 0.5:
            zero["overlap_comm"] = pick.random() < 0.7
        if pick.random() < 0.3:
            zero["offload_optimizer"] = CPU
        if stage == 3 and pick.random() < 0.5:
            zero["stage3_prefetch_bucket_size"] = pick.choice((0, 1, 10, 200)) * 1_000_000
            zero["stage3_max_reuse_distance"] = pick.choice((0, 50, 1000)) * 1_000_000
        yield case(
            f"drawn-{number:02d}", pick.choice(causal), pick.choice((2, 3, 4, 8, 16, 64)), zero,
            seq=pick.choice((256, 512, 1000, 2048)), mbs=pick.choice((1, 2, 3, 4)), gas=pick.choice((1, 1, 2, 3)),
            ckpt=pick.random() < 0.5, precision=pick.choice((BF16, BF16, FP16)),
        )  # fmt: skip


def predicted_bytes(one: dict) -> int:
    """What `estimate` says that the case allocates at most, start included."""
    from trimtab.config import Config
    from trimtab.cost.memory import profile
    from trimtab.model import Model

    result = profile(Config.from_mapping(one["config"]), Model.from_hf(one["hf"], one["id"]), one["world"])
    return max(result.phase_peaks.values())


class Room:
    """Hands out the card's memory, so that only what fits runs at once."""

    def __init__(self, total: int) -> None:
        self.free, self.change = total, threading.Condition()

    def take(self, count: int) -> None:
        with self.change:
            self.change.wait_for(lambda: self.free >= count)
            self.free -= count

    def give(self, count: int) -> None:
        with self.change:
            self.free += count
            self.change.notify_all()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="measured.jsonl")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="", help="substrings of ids, comma-separated")
    parser.add_argument("--drawn", type=int, default=24, help="random cases beside the chosen ones")
    parser.add_argument("--jobs", type=int, default=7)
    parser.add_argument("--room", type=float, default=110, help="GiB of the card to share out")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="shrunken models: tries the path, measures nothing")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after this long")
    options = parser.parse_args()
    wanted = [text for text in options.only.split(",") if text]
    cases = [*chosen(), *drawn(options.drawn)]
    cases = [one for one in cases if not wanted or any(text in one["id"] for text in wanted)]
    if options.list:
        for one in cases:
            print(f"{one['id']:36} {predicted_bytes(one) / GIB:7.2f} GiB")
        return 0
    return run(cases, options)


def run(cases: list[dict], options: argparse.Namespace) -> int:
    import prove_on_gpu

    room, lock, started = Room(int(options.room * GIB)), threading.Lock(), time.time()
    failures: list[bool] = []
    child = argparse.Namespace(
        real=False, fake=True, gpus=1, device=options.device, max_accumulation=4, tiny=options.tiny, timeout=200
    )

    def one_case(one: dict) -> None:
        if failures[-3:] == [True] * 3 or time.time() - started > options.seconds:
            return
        need = int(predicted_bytes(one) * 1.3) + 2 * GIB
        room.take(min(need, int(options.room * GIB)))
        try:
            with tempfile.TemporaryDirectory() as folder:
                model, file = Path(folder) / "config.json", Path(folder) / f"{one['id']}.json"
                model.write_text(json.dumps(one["hf"]))
                block = {**one["config"]["trimtab"], "model": str(model)}
                file.write_text(json.dumps({**one["config"], "trimtab": block}))
                setting = argparse.Namespace(**{**vars(child), "world": one["world"]})
                row = prove_on_gpu.run_child(one["id"], file, setting)
        finally:
            room.give(min(need, int(options.room * GIB)))
        row["hf"], row["step_seconds"] = one["hf"], None
        with lock:
            failures.append(not row["ok"])
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            measured = row["gib"].get("end", {}).get("peak_alloc")
            print(f"{one['id']:36} {measured}  predicted {predicted_bytes(one) / GIB:.2f}  "
                  f"{'' if row['ok'] else (row['error'] or '')[-300:]}", flush=True)  # fmt: skip

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one_case, cases))
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main())
