"""Processes give what threads give, and none of them outlives its use."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys

import pytest

from rasid.batch.prediction import Outcome, predict
from rasid.batch.workers import Workers
from rasid.errors import RasidError
from rasid.inference import Extractor
from rasid.reading.documents import Document
from rasid.settings import shipped_model

TEXTS = ("وصلت قسد إلى حلب", "\udcff", "", "قصف الجيش السوري إدلب\nوصل رتل من تركيا") * 5


def documents() -> list[Document]:
    good = [Document(source=f"{n}.txt", id=str(n), text=text, meta={"n": n}) for n, text in enumerate(TEXTS)]
    return [*good, Document(source="bad.txt", id="bad", text=None, problem="is binary")]


def test_processes_give_the_outcomes_of_threads_in_the_same_order() -> None:
    alone: list[Outcome] = []
    predict(Extractor.load(threads=1), documents(), alone.append)
    together: list[Outcome] = []
    with Workers(shipped_model(), 2) as workers:
        predict(Extractor.load(threads=1), documents(), together.append, workers=workers)
        workers_were = multiprocessing.active_children()
    assert together == alone
    assert [outcome.record is None for outcome in together] == [text == "\udcff" for text in TEXTS] + [True]
    assert len(workers_were) == 2
    assert not any(worker.is_alive() for worker in workers_were)


def test_processes_know_how_long_an_article_may_take() -> None:
    with Workers(shipped_model(), 1, max_seconds=0.0) as workers:
        [outcome] = workers.read(documents()[:1])
    assert outcome.record is None
    assert "took over 0 seconds" in outcome.line


def test_a_process_that_is_killed_ends_the_batch_with_what_to_do() -> None:
    def some_of_them():
        for number, document in enumerate(documents() * 100):
            if number == 60:  # 32 are read ahead, so that some are done by now
                multiprocessing.active_children()[0].kill()
            yield document

    with Workers(shipped_model(), 2) as workers, pytest.raises(RasidError, match="one of 2 processes ended"):
        for _ in workers.read(some_of_them()):
            pass


PARENT = """
import multiprocessing, sys
from rasid.reading.documents import Document
from rasid.settings import shipped_model
from rasid.batch.workers import Workers

if __name__ == "__main__":
    with Workers(shipped_model(), 2) as workers:
        list(workers.read([Document(source="a", id="a", text="قسد")] * 8))
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes as Linux can")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent(tmp_path, number: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        children = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.send_signal(number)
        for child in children:
            assert select.select([child], [], [], 60)[0], "is still there after a minute"
            os.close(child)
