"""Streams and events of a device without time: they run nothing, and tell the ledger who waits for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Nothing:
    """A stream, an event or a device context: there is no time here, only order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device_index = 0

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: object) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


class Stream(Nothing):
    """A stream that only has a name."""

    count = 0

    def __init__(self, *_: Any, name: str | None = None, **__: Any) -> None:
        super().__init__()
        if name is None:
            Stream.count += 1
            name = f"side {Stream.count}"
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        if timeline := _timeline():
            timeline.stream_waits(self.name, other.name)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        if timeline := _timeline():
            timeline.host_waits(self.name)


class Event(Nothing):
    """An event of a stream that only has a name."""

    def query(self) -> bool:
        return _timeline() is None  # whoever asks then waits, and the timeline learns of it

    def record(self, stream: Stream | None = None) -> None:
        if timeline := _timeline():
            timeline.event("record", self, stream.name if stream else _current_stream())

    def wait(self, stream: Stream | None = None) -> None:
        if timeline := _timeline():
            timeline.event("wait_event", self, stream.name if stream else _current_stream())

    def synchronize(self) -> None:
        if timeline := _timeline():
            timeline.event("host_event", self, "")


_LEDGERS: list[Any] = []


def attach(ledger: Any) -> None:
    """Tell this ledger of what no operator shows: kernels behind stand-ins, and who waits for whom."""
    _LEDGERS[:] = [ledger]


def note_kernel(name: str, *tensors: Any) -> None:
    """A kernel of the device that a stand-in takes the place of ran on ``tensors``."""
    for ledger in _LEDGERS:
        ledger.note_kernel(name, tensors, host=False)


def _timeline() -> Any:
    return _LEDGERS[0].timeline if _LEDGERS else None


def _current_stream() -> str:
    return str(_LEDGERS[0].stream)


COMPUTE_STREAM = Stream(name="compute")
