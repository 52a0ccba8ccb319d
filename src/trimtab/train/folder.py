"""A run's folder: what lies where, whose it is, and how a run is asked to stop.

RUN/settings.json  config.json      what was asked, and the configuration that really ran
RUN/events.jsonl                    one line a step and event
RUN/tokenizer/  RUN/data/           the vocabulary and the tokens
RUN/checkpoints/step-000100/        whole or absent
RUN/model/                          the trained model, a Hugging Face folder
RUN/report.json  loss.svg           the closing report
RUN/report.html                     the same as a page, once `trimtab report` has made it
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import UsageError

MARK = "settings.json"
"""The file that makes a folder a run's."""
LOCK = ".lock"
ASIDE = ".replaced-"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def settings(self) -> Path:
        """What was asked."""
        return self.path / MARK

    @property
    def config(self) -> Path:
        """The configuration that really ran."""
        return self.path / "config.json"

    @property
    def events(self) -> Path:
        """One JSON line a step and event."""
        return self.path / "events.jsonl"

    @property
    def data(self) -> Path:
        """The tokens."""
        return self.path / "data"

    @property
    def tokenizer(self) -> Path:
        """The vocabulary, as `from_pretrained` reads it."""
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model, as `from_pretrained` reads it."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The closing report's numbers."""
        return self.path / "report.json"

    @property
    def plot(self) -> Path:
        """The loss over the steps."""
        return self.path / "loss.svg"

    @property
    def page(self) -> Path:
        """The report as a page."""
        return self.path / "report.html"

    @property
    def outcome(self) -> Path:
        """How the last start of this run ended, from rank 0 to whoever started the ranks."""
        return self.path / "outcome.json"

    @property
    def stop_request(self) -> Path:
        """Holds a signal's number while someone wants the run to stop at the next step."""
        return self.path / "stop"

    def exists(self) -> bool:
        """Whether a run lives here."""
        return self.settings.exists()

    def _own(self) -> tuple[Path, ...]:
        """Everything that a run puts here, whether there or not."""
        folders = (self.data, self.tokenizer, self.checkpoints, self.model)
        return (*folders, self.settings, self.config, self.events, self.report, self.plot, self.page,
                self.outcome, self.stop_request)  # fmt: skip

    def _foreign(self) -> list[Path]:
        own = {path.name for path in self._own()} | {LOCK}
        return [path for path in self.path.iterdir() if path.name not in own]

    def open(self, *, resume: str, overwrite: bool) -> None:
        """Make the folder, or find it as ``resume`` and ``overwrite`` allow; changes nothing in it.

        Raises:
            UsageError: a run or other files are there and nothing says to continue or replace it, or there is
                none to resume; names the cure.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; a run needs a folder: --run DIR")
        if overwrite and resume != "never":
            raise UsageError("--overwrite replaces a run and --resume continues one: give one of them")
        if self.exists() and not overwrite and resume == "never":
            raise UsageError(
                f"{self.path} already holds a run. Continue it with --resume auto, replace it with "
                "--overwrite, "
                "or choose another folder with --run DIR"
            )
        if not self.exists() and resume == "required":
            raise UsageError(f"--resume required: {self.path} holds no run to resume")
        if not self.exists() and self.path.is_dir() and self._foreign():
            raise UsageError(
                f"{self.path} is not empty and holds no run ({self._foreign()[0].name} is there); choose "
                "another "
                "folder with --run DIR"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot make the run's folder: {error.strerror}") from error

    @contextlib.contextmanager
    def opened(self, *, resume: str, overwrite: bool) -> Iterator[None]:
        """`open`, and take an empty folder away again if nothing came of it."""
        new = not self.path.exists()
        self.open(resume=resume, overwrite=overwrite)
        try:
            yield
        except BaseException:
            if new and not self.exists():
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def replacing(self, overwrite: bool) -> Iterator[None]:
        """Put an older run aside while its successor gets ready; it comes back if the successor does not.

        Hold the lock.  Without ``overwrite`` only the leftovers of an earlier start's end are cleared.
        """
        self.stop_request.unlink(missing_ok=True)
        self.outcome.unlink(missing_ok=True)
        there = [path for path in self._own() if path.exists()]
        if not overwrite or not there:
            yield
            return
        aside = self.path / f"{ASIDE}{secrets.token_hex(4)}"
        aside.mkdir()
        for path in there:
            path.rename(aside / path.name)
        try:
            yield
        except BaseException:
            for path in self._own():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            for path in list(aside.iterdir()):
                path.rename(self.path / path.name)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused while this one lives.

        Raises:
            UsageError: another process holds it.
        """
        import fcntl

        handle = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  closed below
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                owner = handle.read().strip() or "another process"
                raise UsageError(f"{self.path} is in use by a run that is going on ({owner})") from error
            handle.truncate(0)
            handle.write(f"process {os.getpid()}\n")
            handle.flush()
            yield
        finally:
            handle.close()


def check_disk(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Refuse a run whose files will not fit.

    Raises:
        UsageError: less than ``needed_bytes`` are free where ``folder`` lies; says both.
    """
    from trimtab.units import format_bytes

    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise UsageError(
            f"{folder}: {what} need {format_bytes(needed_bytes)}, but only {format_bytes(free)} are free "
            "there. "
            "Choose another disk with --run DIR, or keep fewer checkpoints with --keep 1"
        )
