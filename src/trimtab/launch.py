"""Starting the ranks of a run with the launchers that exist, and staying beside them until they end.

Commands are lists of arguments, never a shell's text.  A stop is asked for through a callback, so that the
ranks can save first; what does not go is ended, and nothing but what was started here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from trimtab.errors import MissingExtra, UnreadableFile, UsageError

LAUNCHERS = ("torchrun", "deepspeed", "none")
LOOPBACK = "127.0.0.1"
KILL_GRACE_SECONDS = 5.0
"""From asking a launcher to go until it is made to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the ranks are started."""

    ranks: int
    """On this machine; on each machine with a hostfile."""
    device: str
    launcher: str = "torchrun"
    port: int = 0
    nodes: int = 1
    hostfile: str | None = None

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise UsageError(f"--launcher {self.launcher}: it is one of {', '.join(LAUNCHERS)}")
        if self.ranks < 1 or self.nodes < 1:
            raise UsageError("--ranks and --nodes must be at least 1")
        if self.launcher == "none" and self.ranks > 1:
            raise UsageError(f"--launcher none starts one rank, not {self.ranks}")
        if (self.nodes > 1 or self.hostfile) and self.launcher != "deepspeed":
            raise UsageError(
                "several nodes are started by DeepSpeed's launcher: --launcher deepspeed --hostfile "
                "FILE; under "
                "Slurm or torchrun start `python -m trimtab.train` on every node instead"
            )
        if self.nodes > 1 and not self.hostfile:
            raise UsageError(f"--nodes {self.nodes} needs --hostfile FILE with one line a node: HOST slots=8")
        if self.hostfile and not os.path.isfile(self.hostfile):
            raise UnreadableFile(f"--hostfile {self.hostfile}: no such file")

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.ranks * self.nodes


def command(launch: Launch, module: str, arguments: Sequence[str]) -> list[str]:
    """The argument list that starts ``python -m module arguments`` as every rank.

    >>> command(Launch(ranks=2, device="cpu", port=29501), "trimtab.train", ["--settings", "s.json"])[1:]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['-m', 'torch.distributed.run', '--nnodes', '1', '--nproc_per_node', '2', '--master_addr', '127.0.0.1',
     '--master_port', '29501', '-m', 'trimtab.train', '--settings', 's.json']
    """
    if launch.launcher == "none":
        return [sys.executable, "-m", module, *arguments]
    if launch.launcher == "deepspeed":
        where = ["--master_port", str(launch.port), "--no_local_rank"]
        if launch.hostfile:
            where += ["--hostfile", launch.hostfile, "--num_nodes", str(launch.nodes)]
        else:
            where += ["--master_addr", LOOPBACK]
        return [
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(launch.ranks), *where,
            "--module", module, *arguments,
        ]  # fmt: skip
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", str(launch.ranks),
        "--master_addr", LOOPBACK, "--master_port", str(launch.port), "-m", module, *arguments,
    ]  # fmt: skip


def environment(launch: Launch, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the ranks: the accelerator, threads by the cores, and gloo kept on this machine."""
    values = dict(os.environ if base is None else base)
    values["DS_ACCELERATOR"] = launch.device
    values.setdefault("TOKENIZERS_PARALLELISM", "false")
    values.setdefault("OMP_NUM_THREADS", str(max(1, cores() // launch.ranks)))
    if launch.nodes == 1 and not launch.hostfile and sys.platform.startswith("linux"):
        # a machine's own name need not resolve; the loopback device is always there
        values.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if launch.launcher == "none":
        values.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1",
                      MASTER_ADDR=LOOPBACK, MASTER_PORT=str(launch.port))  # fmt: skip
    return values


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_port(asked: int | None) -> int:
    """``asked`` if nobody listens there, else (None) a free port of this machine.

    Raises:
        UsageError: the port that was asked for is in use.
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, asked or 0))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--port {asked} cannot be used: {getattr(error, 'strerror', None) or error}. Leave "
                "--port out and a "
                "free one is chosen"
            ) from error
        return int(server.getsockname()[1])


def supervise(
    arguments: Sequence[str], values: Mapping[str, str], *, ask_to_stop: Callable[[int], None]
) -> int:
    """Run a launcher until it ends; its exit code, 128+n if a signal ended it.

    The first SIGINT or SIGTERM calls ``ask_to_stop`` with its number and waits on; a second one ends
    everything that was started.
    """
    process = subprocess.Popen(arguments, env=dict(values), stdin=subprocess.DEVNULL, start_new_session=True)
    asked: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            ask_to_stop(number)

    try:
        with _handled((signal.SIGINT, signal.SIGTERM), on_signal):
            while (code := _wait(process)) is None:
                if len(asked) > 1:
                    end_tree(process)
                    return 128 + asked[-1]
    finally:
        if process.poll() is None:
            end_tree(process)
    return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can take signals
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: asked first, made to after `KILL_GRACE_SECONDS`."""
    try:
        import psutil
    except ImportError as error:
        raise MissingExtra("psutil", "train", "launching") from error
    try:
        root = psutil.Process(process.pid)
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for one in tree:
        _end(one.terminate)
    deadline = time.monotonic() + KILL_GRACE_SECONDS
    while time.monotonic() < deadline and any(one.is_running() and one.status() != "zombie" for one in tree):
        process.poll()
        time.sleep(0.1)
    for one in tree:
        _end(one.kill)
    process.wait()


def _end(act: Callable[[], Any]) -> None:
    import psutil

    try:
        act()
    except psutil.NoSuchProcess:
        return
