"""Launchers' argument lists, the ranks' environment, ports, and what becomes of signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trimtab.errors import UnreadableFile, UsageError
from trimtab.launch import Launch, choose_port, command, cores, environment, supervise


def test_torchrun_stays_on_this_machine() -> None:
    assert command(Launch(ranks=2, device="cpu", port=5), "trimtab.train", ["--settings", "a b"])[1:] == [
        "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--master_port", "5", "-m", "trimtab.train", "--settings", "a b",
    ]  # fmt: skip


def test_deepspeeds_launcher_takes_the_hostfile(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=8\nnode2 slots=8\n", encoding="utf-8")
    launch = Launch(ranks=8, device="cuda", launcher="deepspeed", port=5, nodes=2, hostfile=str(hosts))
    words = command(launch, "trimtab.train", ["x"])
    assert words[1:5] == ["-m", "deepspeed.launcher.runner", "--num_gpus", "8"]
    assert words[-3:] == ["--module", "trimtab.train", "x"]
    assert words[words.index("--hostfile") + 1] == str(hosts)
    assert "--master_addr" not in words
    assert launch.world_size == 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"launcher": "mpirun"}, "one of torchrun, deepspeed, none"),
        ({"ranks": 0}, "at least 1"),
        ({"launcher": "none"}, "starts one rank"),
        ({"nodes": 2}, "--launcher deepspeed --hostfile"),
        ({"nodes": 2, "launcher": "deepspeed"}, "needs --hostfile"),
    ],
)
def test_what_cannot_be_launched_is_said(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Launch(**({"ranks": 2, "device": "cpu"} | wrong))
    with pytest.raises(UnreadableFile, match="no such file"):
        Launch(ranks=2, device="cpu", launcher="deepspeed", hostfile="/nowhere")


def test_the_ranks_share_the_cores_and_keep_what_the_user_set() -> None:
    values = environment(Launch(ranks=2, device="cpu", port=5), {"PATH": "/bin"})
    assert values["OMP_NUM_THREADS"] == str(max(1, cores() // 2))
    assert values["DS_ACCELERATOR"] == "cpu"
    assert "RANK" not in values
    kept = {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth9"}
    assert kept.items() <= environment(Launch(ranks=2, device="cpu", port=5), kept).items()
    alone = environment(Launch(ranks=1, device="cpu", launcher="none", port=5), {})
    assert (alone["RANK"], alone["WORLD_SIZE"], alone["MASTER_PORT"]) == ("0", "1", "5")


def test_a_port_in_use_is_refused_and_a_free_one_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"--port \d+ cannot be used: .*Leave --port out"):
            choose_port(taken.getsockname()[1])
    assert 0 < choose_port(None) < 65536
    with pytest.raises(UsageError, match="--port 99999 cannot be used"):
        choose_port(99999)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import sys; sys.exit(0)", 0),
        ("import sys; sys.exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_a_launchers_end_becomes_an_exit_code(script: str, code: int) -> None:
    assert supervise([sys.executable, "-c", script], os.environ, ask_to_stop=lambda _: None) == code


def _signal_when(path: Path, times: int) -> None:
    """Send this process SIGINT ``times`` times once ``path`` is there, each a moment after the other."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    threading.Thread(target=send, daemon=True).start()


def test_the_first_signal_asks_and_waits(tmp_path: Path) -> None:
    ready, stop = tmp_path / "ready", tmp_path / "stop"
    script = f"""
import pathlib, time
pathlib.Path({str(ready)!r}).touch()
while not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.02)
"""
    _signal_when(ready, 1)
    asked: list[int] = []

    def ask(number: int) -> None:
        asked.append(number)
        stop.touch()

    assert supervise([sys.executable, "-c", script], os.environ, ask_to_stop=ask) == 0
    assert asked == [signal.SIGINT]


def test_the_second_signal_ends_all_that_was_started(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    ready = tmp_path / "ready"
    child = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    script = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
pathlib.Path({str(ready)!r}).write_text(str(child.pid))
time.sleep(600)
"""
    _signal_when(ready, 2)
    assert supervise([sys.executable, "-c", script], os.environ, ask_to_stop=lambda _: None) == 130
    deadline = time.monotonic() + 20
    pid = int(ready.read_text(encoding="utf-8"))
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in ("", "Z", "Zs")
