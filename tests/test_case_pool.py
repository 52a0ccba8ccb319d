"""The pool of measured cases gives back what it takes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import case_pool


def test_a_process_that_stands_by_leaves_its_log_to_its_worker() -> None:
    standby = case_pool.Standby(argparse.Namespace(gpus=1, device="cpu"))
    try:
        held = {os.path.realpath(one) for one in Path("/proc/self/fd").iterdir()}
        assert os.path.realpath(standby.log) not in held
    finally:
        standby.kill()
        assert standby.process.stdin is not None
        standby.process.stdin.close()
        standby.folder.cleanup()
