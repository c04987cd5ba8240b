"""Seconds and peak memory of every stage of a run."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATM = Path("/proc/self/statm")
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class StageRecord:
    """One finished stage.

    Attributes:
        name: As shown to the user.
        seconds: Wall clock.
        peak_memory_bytes: Largest resident set of the process while the stage ran, sampled every 20 ms; None where the
            operating system does not tell (no /proc).
        peak_gpu_bytes: Largest CUDA allocation while the stage ran; None without a GPU.
    """

    name: str
    seconds: float
    peak_memory_bytes: int | None
    peak_gpu_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_gpu_bytes": self.peak_gpu_bytes,
        }


class Stages:
    """Records stages in order, and tells `on_stage` (a progress display) the name of each as it begins."""

    def __init__(self, on_stage: Callable[[str], None] | None = None):
        self.records: list[StageRecord] = []
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._on_stage is not None:
            self._on_stage(name)
        gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with _PeakResidentSet() as resident:
            yield
        seconds = time.perf_counter() - start
        # The stage may be the one that starts CUDA.
        gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        peak_gpu = torch.cuda.max_memory_allocated() if gpu else None
        self.records.append(StageRecord(name, seconds, resident.peak, peak_gpu))

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)

    def to_list(self) -> list[dict[str, Any]]:
        return [record.to_dict() for record in self.records]


class _PeakResidentSet:
    """Samples the resident set in a thread: the kernel's own high-water mark cannot be reset between stages."""

    def __init__(self):
        self.peak: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_PeakResidentSet":
        self._sample()
        if self.peak is not None:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        resident = resident_bytes()
        if resident is not None:
            self.peak = max(self.peak or 0, resident)


def resident_bytes() -> int | None:
    """Resident set of this process, or None where /proc is missing."""
    if not _STATM.exists():
        return None
    import resource

    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
