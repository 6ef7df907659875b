import collections
import threading
import time

import pytest

from stif_rt.video import overlap
from stif_rt.video.overlap import Prefetch


def test_items_come_in_order():
    with Prefetch(range(100), 3) as items:
        assert list(items) == list(range(100))


@pytest.mark.parametrize("ahead", [1, 4])
def test_no_more_items_are_made_than_allowed(ahead):
    made = 0

    def items():
        nonlocal made
        for n in range(50):
            made = n + 1
            yield n

    largest = 0
    with Prefetch(items(), ahead) as fetched:
        for n in fetched:
            time.sleep(0.002)
            largest = max(largest, made - n - 1)
    assert 1 <= largest <= ahead + 1  # in the queue, and one that waits for a place in it


def test_stages_overlap():
    """Each of two stages waits until the other one is at work at the same time."""
    meeting = threading.Barrier(2, timeout=10)

    def items():
        for n in range(5):
            yield n
            meeting.wait()

    with Prefetch(items(), 1) as fetched:
        seen = []
        for n in fetched:
            meeting.wait()
            seen.append(n)
    assert seen == list(range(5))


def test_errors_come_after_the_items_before_them():
    def items():
        yield 1
        raise OSError("disk")

    seen = []
    with pytest.raises(OSError, match="disk"), Prefetch(items(), 5) as fetched:
        collections.deque((seen.append(n) for n in fetched), maxlen=0)
    assert seen == [1]


def test_leaving_early_ends_the_thread_and_closes_the_source():
    closed_by = []

    def items():
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed_by.append(threading.current_thread())

    with Prefetch(items(), 2) as fetched:
        for n in fetched:
            if n == 3:
                break
    assert len(closed_by) == 1
    assert closed_by[0] is not threading.main_thread()
    assert not closed_by[0].is_alive()


def test_closing_does_not_wait_for_long_work(monkeypatch):
    monkeypatch.setattr(overlap, "PATIENCE", 0.05)
    release = threading.Event()

    def items():
        yield 0
        release.wait(10)
        yield 1

    fetched = Prefetch(items(), 1)
    assert next(iter(fetched)) == 0
    assert not fetched.close()
    release.set()
    monkeypatch.setattr(overlap, "PATIENCE", 10)
    assert fetched.close()
