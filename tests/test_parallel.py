"""Several threads give what one gives."""

import threading

import pytest

from rasid import Extractor
from rasid.parallel import ordered_map


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads):
    first_may_end = threading.Event()

    def work(item: int) -> int:
        if item == 0 and threads > 1:
            assert first_may_end.wait(30)  # the first item ends last among those at work
        if item == 1:
            first_may_end.set()
        return item * item

    assert list(ordered_map(work, range(50), threads)) == [n * n for n in range(50)]


@pytest.mark.parametrize("threads", [1, 3])
def test_items_are_taken_a_few_ahead_and_no_more(threads):
    taken = []

    def items():
        for n in range(1000):
            taken.append(n)
            yield n

    results = ordered_map(lambda n: n, items(), threads)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 2 * threads + 1
    results.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_comes_out_in_its_place(threads):
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("third")
        return item

    results = ordered_map(work, range(10), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)


def test_the_extractor_gives_the_same_on_any_number_of_threads():
    texts = [f"وصلت {n} شاحنة لقسد من تل تمر إلى عين عيسى.\nوقصف الجيش {'حلب ' * n}." for n in range(1, 25)]
    one, several = Extractor.load(threads=1), Extractor.load(threads=4)
    assert [a.to_json() for a in several.pipe(texts)] == [one(text).to_json() for text in texts]
