"""The order of a step: which stream runs what, who waits for whom, and where the host waits.

A `Timeline` collects ``(kind, index)`` pairs while the measured step runs:

    operator, collective, copy    an entry of the ledger's tables, on the stream in force
    stream                        what follows goes to stream ``index`` of `Timeline.streams`
    join                          stream ``index // 64`` waits for stream ``index % 64`` as it is now
    record, wait_event            event ``index`` is recorded on, or awaited by, the stream in force
    await                         the stream in force waits for collective number ``index`` of this timeline
    host                          the host waits for stream ``index``; -1: for all of them
    host_event                    the host waits for event ``index``
    module                        a module's forward begins
    gradient                      a parameter's gradient is finished
    handover                      of a reduction's gradients every rank has handed its own to the host:
                                  number ``index`` of `trimtab.rehearse.request.Rehearsal.handovers`
    checkpoint                    that of a layer whose activations are recomputed begins, or begins again
    phase                         phase ``index`` of `trimtab.rehearse.request.PHASES` begins
"""

from __future__ import annotations

from collections.abc import Hashable

STREAMS = 64
"""More streams than any engine uses: a join holds two of them in one number."""


class Timeline:
    """Collects the order of one step."""

    def __init__(self, stream: str) -> None:
        self.entries: list[tuple[str, int]] = []
        self.streams: list[str] = [stream]
        self.collectives = 0
        self._stream = 0
        self._places: dict[str, dict[Hashable, int]] = {}
        self._events: dict[int, int] = {}

    def count(self, kind: str, key: Hashable, stream: str) -> None:
        """``key`` of the table ``kind`` runs on ``stream``."""
        self._on(stream)
        places = self._places.setdefault(kind, {})
        self.entries.append((kind, places.setdefault(key, len(places))))
        self.collectives += kind == "collective"

    def note(self, kind: str, index: int = 0) -> None:
        """Something that only matters for the order."""
        self.entries.append((kind, index))

    def stream_waits(self, waiter: str, waited: str) -> None:
        """``waiter.wait_stream(waited)``."""
        self.entries.append(("join", self._number(waiter) * STREAMS + self._number(waited)))

    def event(self, kind: str, event: object, stream: str) -> None:
        """``record`` or ``wait_event`` of ``event`` on ``stream``, or ``host_event``."""
        if kind != "host_event":
            self._on(stream)
        self.entries.append((kind, self._events.setdefault(id(event), len(self._events))))

    def host_waits(self, stream: str | None) -> None:
        """The host waits for ``stream``, or for the whole device."""
        self.entries.append(("host", -1 if stream is None else self._number(stream)))

    def awaited(self, collective: int, stream: str) -> None:
        """``stream`` waits for a collective."""
        self._on(stream)
        self.entries.append(("await", collective))

    def _on(self, stream: str) -> None:
        number = self._number(stream)
        if number != self._stream:
            self._stream = number
            self.entries.append(("stream", number))

    def _number(self, stream: str) -> int:
        if stream not in self.streams:
            self.streams.append(stream)
        return self.streams.index(stream)
