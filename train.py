"""The training script for DeepSpeed's and PyTorch's launchers.

    deepspeed --num_gpus=8 train.py --deepspeed_config llama_7b_single_node --data corpus/
    torchrun --nproc_per_node=8 train.py --deepspeed_config my_config.json --data corpus.jsonl --steps 1000

`python train.py --help` lists the options; they are those of `trimtab train`.
"""

import sys
from pathlib import Path

try:
    from trimtab.train.__main__ import main
except ModuleNotFoundError:  # a clone that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
    from trimtab.train.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
