"""Processes that read articles side by side; many threads would wait for the one interpreter that they share."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Self

from rasid.batch.prediction import AHEAD, Outcome, predict_one
from rasid.errors import RasidError
from rasid.inference import Extractor
from rasid.parallel import ordered_map
from rasid.reading.documents import Document

_extractor: Extractor  # of a worker


class Workers:
    """A pool of processes, each with an extractor of its own on one thread; a context manager.

    Args:
        model: Folder of an exported model.
        processes: How many.
        max_seconds: Longest time for one article.
    """

    def __init__(self, model: Path, processes: int, max_seconds: float | None = None):
        self.processes, self.max_seconds = processes, max_seconds
        # A process of its own start, as one that is forked from a process with threads can hang.
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(model,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, documents: Iterable[Document]) -> Iterator[Outcome]:
        """What comes of each document, in order.

        Raises:
            RasidError: if a process dies.
        """
        jobs = ((document, self.max_seconds) for document in documents)
        try:
            yield from ordered_map(_read, jobs, self.processes, AHEAD * self.processes, self._pool)
        except BrokenProcessPool as error:
            raise RasidError(
                f"one of {self.processes} processes ended, perhaps for want of memory; give fewer --processes"
            ) from error


def _start(model: Path) -> None:
    global _extractor
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops the others
    threading.Thread(target=_follow_parent, daemon=True).start()
    _extractor = Extractor.load(model, threads=1)


def _follow_parent() -> None:
    """End with a parent that was killed."""
    if parent := parent_process():
        parent.join()
    os._exit(1)


def _read(job: tuple[Document, float | None]) -> Outcome:
    document, max_seconds = job
    return predict_one(_extractor, document, max_seconds)
