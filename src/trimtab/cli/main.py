"""The entry of the ``trimtab`` command: finds the command, runs it, turns every outcome into an exit code.

Exit codes: 0 fine; 1 the answer is no; 2 the tool could not do its work; 130 interrupted.  Results go to
stdout and talk to stderr.  An error is one line, never a traceback; with ``--json`` it is an object on
stdout.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

from trimtab import __version__
from trimtab.cli import commands
from trimtab.errors import NotFound, TrimtabError, Unsupported, UsageError, nearest

USAGE = "Usage: trimtab COMMAND [ARGUMENTS]..."
INTERRUPTED = 130
FAILED = 2


def run() -> None:
    """The console script: the process's arguments in, its exit code out."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × is no reason to fail
    code = main(sys.argv[1:])
    if not gc.isenabled():  # nor shall the end take apart all that is there
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    try:
        code = _dispatch(list(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError as error:
        return 0 if _reader_is_gone() else _unexpected(error, arguments)
    except TrimtabError as error:
        return _refuse(error, arguments)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _unexpected(error, arguments)
        return _refuse(Unsupported(f"{error.filename or 'the output'}: the disk is full."), arguments)
    except Exception as error:  # noqa: BLE001 - the last net: whatever falls here is our mistake
        return _unexpected(error, arguments)


def _dispatch(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h", "help"):
        if rest and name == "help":
            return _dispatch([rest[0], "--help"])
        _print(_overview())
        return 0
    if name in ("--version", "-V"):
        _print(f"trimtab {__version__}")
        return 0
    if name not in commands.available():
        kind = "flag" if name.startswith("-") else "command"
        options = ("--help", "--version") if kind == "flag" else commands.available()
        raise NotFound(kind, name, options, cure="`trimtab --help` lists them.")
    return _invoke(name, rest)


def _invoke(name: str, arguments: list[str]) -> int:
    if name in commands.QUICK:
        gc.disable()  # these end before looking for garbage pays
    quick = commands.quick(name)
    code = quick(arguments) if quick is not None else None
    if code is not None:
        return code
    gc.enable()
    return _invoke_typer(name, arguments)


def _invoke_typer(name: str, arguments: list[str]) -> int:
    import typer

    target = commands.load(name)
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(name, context_settings={"help_option_names": ["-h", "--help"]})(target)
    command = typer.main.get_command(app)
    if target is not app:
        for parameter in command.params:
            parameter.metavar = parameter.metavar or commands.placeholder(target, parameter.name)
    flags = ["--help"]
    flags += [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    try:
        with command.make_context(f"trimtab {name}", _with_dashes(arguments, flags)) as context:
            code = command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # typer's usage errors; their class has no public name in every version of typer
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        raise UsageError(_usage_message(name, error, describe(), flags)) from None
    return code if isinstance(code, int) else 0


def _with_dashes(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The arguments with ``--micro_batch`` spelled ``--micro-batch`` wherever that is a flag."""
    spelled: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*spelled, *arguments[position:]]
        flag, equals, value = argument.partition("=")
        dashed = flag.replace("_", "-")
        spelled.append(dashed + equals + value if flag.startswith("--") and dashed in flags else argument)
    return spelled


def _usage_message(name: str, error: Exception, message: str, flags: Sequence[str]) -> str:
    unknown = getattr(error, "option_name", None)
    if unknown and getattr(error, "possibilities", ...) is not ...:
        near = [flag for flag in nearest(unknown, flags) if flag.startswith("--")]
        message = f"unknown flag '{unknown}'." + (f" Did you mean {' or '.join(near)}?" if near else "")
    message = " ".join(message.split())
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message[:1].lower()}{message[1:]}{stop} See `trimtab {name} --help`."


def _overview() -> str:
    available = commands.available()
    width = max(map(len, available))
    lines = [
        USAGE,
        "",
        "Find the right DeepSpeed configuration, prove it, run it, and mend it.",
    ]
    for section, names in commands.SECTIONS.items():
        shown = [name for name in names if name in available]
        if shown:
            lines += ["", f"{section}:", *(f"  {name:<{width}}  {commands.summary(name)}" for name in shown)]
    lines += ["", "`trimtab COMMAND --help` tells more. Every command that answers has --json."]
    return "\n".join(lines)


def _refuse(error: TrimtabError, arguments: Sequence[str]) -> int:
    details: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, NotFound):
        details["nearest"] = list(error.nearest)
    return _say(details, error.exit_code, arguments)


def _unexpected(error: BaseException, arguments: Sequence[str]) -> int:
    if os.environ.get("TRIMTAB_DEBUG"):
        raise error
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame else "?"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    message = f"{what} ({place}). This is a mistake of Trimtab, not yours: TRIMTAB_DEBUG=1 shows where."
    return _say({"kind": "Bug", "message": message}, FAILED, arguments)


def _say(details: dict[str, Any], exit_code: int, arguments: Sequence[str]) -> int:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in own:
        from trimtab.report.document import to_json

        try:
            print(to_json({"error": {**details, "exit_code": exit_code}}), flush=True)  # noqa: T201
            return exit_code
        except OSError:  # stdout takes nothing any more
            pass
    print(f"error: {details['message']}", file=sys.stderr)  # noqa: T201
    return exit_code


def _print(text: str) -> None:
    print(text)  # noqa: T201


def _reader_is_gone() -> bool:
    """Whether stdout's reader has closed the pipe; stdout is then led away so that exit stays silent."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    pipe = select.poll()
    pipe.register(stdout, 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return gone
