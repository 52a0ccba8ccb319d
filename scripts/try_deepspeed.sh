#!/usr/bin/env bash
# Trains, saves and resumes all thirteen configurations on the CPU with another release of DeepSpeed.
#
#     scripts/try_deepspeed.sh 0.19.7
#
# The release is unpacked beside the environment and laid over it through PYTHONPATH: torch, transformers and
# all else stay as they are.  PYTHON names the environment's interpreter (default: .venv/bin/python), CACHE the
# folder for the unpacked releases (default: .cache/deepspeed).  Exit code 0: the release carries all thirteen.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:?usage: scripts/try_deepspeed.sh VERSION}
python=${PYTHON:-.venv/bin/python}
target=${CACHE:-.cache/deepspeed}/$version

if [ ! -e "$target/deepspeed/__init__.py" ]; then
    # built with the environment's own torch, without compiling any operator
    DS_BUILD_OPS=0 "$python" -m pip install --quiet --no-deps --no-build-isolation --no-compile \
        --target "$target" "deepspeed==$version"
fi
PYTHONPATH=$(realpath "$target"):$(realpath src)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
# operators that DeepSpeed compiles when first used belong to the release
TORCH_EXTENSIONS_DIR=$(realpath "$target")/.extensions
export TORCH_EXTENSIONS_DIR DS_ACCELERATOR=cpu
"$python" - "$version" <<'END'
import sys, warnings
warnings.simplefilter("ignore")
import deepspeed, torch, transformers
assert deepspeed.__version__ == sys.argv[1], (deepspeed.__version__, deepspeed.__file__)
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
END
# an older release calls what torch has deprecated since; that is not what is asked here
exec "$python" -m pytest -q --tb=line -W default tests/train/test_catalogue_trains.py
