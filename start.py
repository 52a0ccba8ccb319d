"""The two commands of a fresh clone; they need nothing but Python 3.10 or newer.

    python3 start.py            train the demo
    python3 start.py test       run the checks and the tests

What follows is passed on: to `trimtab demo`, or to pytest.  The first run makes .venv beside this file and
installs the versions of constraints.txt into it; a later run goes straight to work.

This file keeps to syntax that old Pythons can read, so that they say what is wrong and not "invalid syntax".
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")
STAMP = os.path.join(VENV, "installed.json")
LOG = os.path.join(VENV, "install.log")

OLDEST = (3, 10)
TORCH = "torch==2.13.0"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
ROOM_GB = {"cpu": 3, "cuda": 12}  # seen: 1.7 GB installed for the CPU; CUDA's wheels unpack to some 8 GB

CANNOT = 2
INTERRUPTED = 130
NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|NameResolution|name resolution|Name or service not known"
    "|Network is unreachable|ReadTimeout|ProxyError"
)


class CannotStart(Exception):
    """Something outside this program is missing; the message says what, and what to do."""


def main(arguments):
    if sys.version_info < OLDEST:
        needed, found = ".".join(map(str, OLDEST)), ".".join(map(str, sys.version_info[:3]))
        raise CannotStart(f"Trimtab needs Python {needed} or newer; this is Python {found}.")
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    testing = arguments[:1] == ["test"]
    if arguments and not testing and not arguments[0].startswith("-"):
        raise CannotStart(
            "start.py knows only `test`. Other commands: {} -m trimtab {}".format(
                os.path.relpath(PYTHON), " ".join(arguments)
            )
        )
    install({"train", "dev"} if testing else {"train"})
    if testing:
        return test(arguments[1:])
    return become([PYTHON, "-m", "trimtab", "demo", *arguments])


def become(command):
    """Runs ``command`` in this process's place, so that signals reach it; beside it where that cannot be."""
    if os.name == "posix":
        sys.stderr.flush()
        os.execve(command[0], command, environment())
    return subprocess.call(command, env=environment())


def test(arguments):
    """The checks and the tests, all of them even if an early one fails; pytest's closing line comes last."""
    checks = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "pytest": ["pytest", "-n", "2", *arguments],
    }
    failed = []
    for name, command in checks.items():
        say(f"== {name}")
        code = subprocess.call(
            [PYTHON, "-m", *command], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL
        )
        if code:
            failed.append(name)
    if failed:
        say("failed: {}".format(", ".join(failed)))
    return 1 if failed else 0


def install(extras):
    """Makes .venv what constraints.txt says, unless its stamp shows that it already is."""
    stamp = read_stamp()
    key = fingerprint()
    if stamp.get("key") == key:
        if extras <= set(stamp["extras"]):
            return
        extras = extras | set(stamp["extras"])
    kind = "cuda" if has_nvidia_gpu() else "cpu"
    check_room(ROOM_GB[kind])
    say(f"Setting up {os.path.relpath(VENV)} (once; the log is {os.path.relpath(LOG)})")
    if not works():
        make_venv()
    open(LOG, "w").close()
    pip("setuptools and wheel", "setuptools", "wheel")
    if kind == "cuda":
        pip(f"{TORCH} with CUDA", TORCH)
    else:
        pip(f"{TORCH} for the CPU", *cpu_torch())
    # DeepSpeed comes as source only.  Nothing is compiled now: it builds the operators it needs when it runs,
    # for the accelerator that it finds then.
    without_building = {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    pip("deepspeed", "--no-build-isolation", "deepspeed", extra_environment=without_building)
    pip(
        "trimtab[{}]".format(",".join(sorted(extras))),
        "--no-build-isolation", "--editable", ".[{}]".format(",".join(sorted(extras))),
    )  # fmt: skip
    with open(STAMP, "w") as stream:
        json.dump({"key": key, "extras": sorted(extras)}, stream)


def read_stamp():
    try:
        with open(STAMP) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}


def fingerprint():
    """Changes with whatever could make an installed .venv wrong."""
    digest = hashlib.sha256(ROOT.encode() + sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as stream:
            digest.update(stream.read())
    return digest.hexdigest()


def has_nvidia_gpu():
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and b"GPU 0" in listing.stdout


def check_room(needed_gb):
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < needed_gb:
        raise CannotStart(
            f"{ROOT} has {free_gb:.1f} GB free; installing takes {needed_gb} GB. Make room or move the clone."
        )


def works():
    """Whether .venv is there with a Python that runs, is new enough and has pip."""
    program = f"import sys, pip; sys.exit(sys.version_info < {OLDEST!r})"
    try:
        return subprocess.call([PYTHON, "-c", program], stderr=subprocess.DEVNULL, env=environment()) == 0
    except OSError:
        return False


def make_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = "{}.{}".format(*sys.version_info)
        raise CannotStart(
            f"this Python has no venv module. On Debian and Ubuntu: sudo apt install python{version}-venv"
        ) from None
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
    )  # fmt: skip
    if made.returncode:
        raise CannotStart("cannot make {}:\n{}".format(VENV, made.stdout.decode(errors="replace").strip()))


def cpu_torch():
    """What to give pip so that torch comes without gigabytes of CUDA."""
    wanted = TORCH.partition("==")[2] + "+cpu"
    if not sys.platform.startswith("linux") or wanted in versions_of_torch():
        return [TORCH]
    if wanted in versions_of_torch("--index-url", CPU_WHEELS, "--retries", "0", "--timeout", "8"):
        return [TORCH, "--extra-index-url", CPU_WHEELS]
    say(f"  ({CPU_WHEELS} cannot be reached; the registry's torch may bring CUDA along)")
    return [TORCH]


def versions_of_torch(*options):
    listing = subprocess.run(
        [PYTHON, "-m", "pip", "--disable-pip-version-check", "index", "versions", "torch", *options],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    return re.split(r"[\s,]+", listing.stdout.decode(errors="replace"))


def pip(label, *arguments, extra_environment=None):
    """One quiet `pip install` under constraints.txt, as one line with its time."""
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    command += ["--progress-bar", "off", "--retries", "2", "--constraint", "constraints.txt", *arguments]
    start = time.monotonic()
    with open(LOG, "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT, env=environment(extra_environment),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = follow(process, label, start)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise CannotStart(explain(label))


def follow(process, label, start):
    live = sys.stderr.isatty()
    while True:
        try:
            code = process.wait(timeout=1 if live else None)
        except subprocess.TimeoutExpired:
            code = None
        line = f"  {label:<28} {time.monotonic() - start:4.0f} s"
        if live:
            sys.stderr.write("\r" + line)
        if code is not None:
            say("" if live else line)
            return code


def explain(label):
    with open(LOG, errors="replace") as stream:
        log = stream.read()
    tail = "\n".join("    " + line for line in log.splitlines()[-12:])
    if "No space left on device" in log:
        cause = "the disk is full. Make room, then run this again."
    elif NO_NETWORK.search(log):
        cause = "no package registry answers. Check the network and pip's settings, then run this again."
    else:
        cause = "pip failed."
    return f"{label} could not be installed: {cause} The end of {LOG}:\n{tail}"


def environment(extra=None):
    """This process's environment, turned to .venv alone."""
    values = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    values["VIRTUAL_ENV"] = VENV
    values["PATH"] = BIN + os.pathsep + values.get("PATH", os.defpath)
    values["PIP_USER"] = "0"
    values.update(extra or {})
    return values


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CannotStart as error:
        say(f"error: {error}")
        sys.exit(CANNOT)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(INTERRUPTED)
