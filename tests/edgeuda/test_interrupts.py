"""What Ctrl-C and SIGTERM do, and that nothing of it stays."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from edgeuda.interrupts import same_handlers, stop_requests

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_asks_and_the_second_is_handled_as_before(number):
    before = [signal.getsignal(one) for one in BOTH]
    killed = []
    signal.signal(number, lambda *_: killed.append(number))
    asked = threading.Event()
    try:
        with stop_requests(asked.set) as came:
            os.kill(os.getpid(), number)
            assert asked.is_set()
            assert not killed
            os.kill(os.getpid(), number)
        assert came == [number.name]
        os.kill(os.getpid(), number)
        assert len(killed) == 2
    finally:
        signal.signal(number, before[BOTH.index(number)])
    assert [signal.getsignal(one) for one in BOTH] == before


def test_what_another_library_sets_does_not_stay():
    """As Ray does when it begins."""
    before = [signal.getsignal(one) for one in BOTH]
    with suppress(KeyError), same_handlers():
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise KeyError
    assert [signal.getsignal(one) for one in BOTH] == before


def test_elsewhere_than_in_the_main_thread_the_programs_own_handling_stays():
    before = [signal.getsignal(one) for one in BOTH]
    within = []

    def work():
        with stop_requests():
            within.extend(signal.getsignal(one) for one in BOTH)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert within == before
