#!/usr/bin/env bash
# Plans with measured candidates, for the jobs of bench/grid.py, on the GPUs of this machine.
#
#   bash bench/probe_plans.sh OUTPUT_FOLDER [GPUS] [SECONDS_A_MODEL] [MODEL...]
#   python bench/plan_quality.py GRID.jsonl --answers OUTPUT_FOLDER
#
# Writes MODEL-xGPUS-probe.json and what it said, MODEL-xGPUS-probe.txt, a line of seconds each on stdout.
set -u
output=$1
gpus=${2:-1}
limit=${3:-150}
shift $(($# < 3 ? $# : 3))
models=${*:-gpt2 tinyllama-1.1b llama-7b}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$output"
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
export TRIMTAB_CACHE=/tmp/trimtab-cache TRIMTAB_HISTORY=/tmp/trimtab-history.sqlite

for model in $models; do
    # sequence length and global batch as bench/grid.py has them
    read -r length batch < <("$python" - "$root/bench" "$model" "$gpus" <<'PY'
import sys

sys.path.insert(0, sys.argv[1])
from grid import MODELS

model, world = MODELS[sys.argv[2]], int(sys.argv[3])
print(model["sequence_length"], model["samples_per_gpu"][world] * world)
PY
    )
    name=$output/$model-x$gpus-probe
    started=$SECONDS
    timeout --kill-after=5 "$limit" "$python" -m trimtab plan --model "$model" --gpu h200 \
        --gpus-per-node "$gpus" --host-memory "$((128 * gpus))GiB" --objective pretrain \
        --global-batch "$batch" --sequence-length "$length" ${PROOF:---probe} --json \
        >"$name.json" 2>"$name.txt"
    echo "$model on $gpus: exit code $?, $((SECONDS - started)) s"
done
