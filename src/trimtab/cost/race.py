"""The host that issues kernels and the GPU that runs them, one ahead of the other."""

from __future__ import annotations

from collections import deque

LAUNCH_QUEUE = 1024
"""Kernels that a stream holds: the host that issues one more waits until the first of them begins.

About 1,000 by NVIDIA's forum (topic 68937); with 1,024 the simulated steps of bert-large, gpt2-large,
t5-large and qwen2.5 at stages 1 and 2 in bench/data/choices.jsonl are 3 % off and less, with twice as many
or without a limit up to 10 and 15 % short (bench/speed_accuracy.py ``--simulate`` with another number here).
"""


class Race:
    """Where both are after stretches of kernels that are issued and run evenly; seconds from the start.

    >>> race = Race()
    >>> race.run(100, issuing=0.002, running=0.010)
    >>> race.run(100, issuing=0.002, running=0.001)
    >>> round(race.device, 4), round(race.lead, 4)
    (0.011, 0.007)
    """

    def __init__(self) -> None:
        self.host = self.device = 0.0
        self._launched: deque[tuple[float, float, float]] = deque()
        """Stretches that may still be in the queue: kernels, and when the first begins and the last ends."""

    @property
    def lead(self) -> float:
        """How long the GPU still works when the host is done."""
        return max(0.0, self.device - self.host)

    def run(self, kernels: float, *, issuing: float, running: float) -> None:
        """Issue ``kernels``, which take the host and the GPU so many seconds."""
        if not kernels:
            self.host += issuing
            self.device += running
            return
        if kernels > LAUNCH_QUEUE:  # so many are issued at the most when the first begins
            self.host = max(self.host, self.device - LAUNCH_QUEUE * issuing / kernels)
        begins = max(self.device, self.host + issuing / kernels)
        self.host += issuing
        self.device = max(begins + running, self.host + running / kernels)
        self._launched.append((kernels, begins, self.device))
        self.host = max(self.host, self._queued_since())

    def _queued_since(self) -> float:
        """When the kernel begins that was launched `LAUNCH_QUEUE` before the last."""
        after = 0.0
        for place in range(len(self._launched) - 1, -1, -1):
            kernels, begins, ends = self._launched[place]
            if after + kernels >= LAUNCH_QUEUE:
                for _ in range(place):
                    self._launched.popleft()
                return begins + (ends - begins) * (1 - (LAUNCH_QUEUE - after) / kernels)
            after += kernels
        return 0.0
