"""How a render ends when it is asked to: Ctrl-C, Ctrl-C again, SIGTERM, SIGHUP."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stif_rt.video.options import Cancellation

ABRUPT = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


def exit_status(number: int) -> int:
    """The exit status of a process that a signal has ended, as shells have it."""
    return 128 + number


@contextmanager
def stopped_by_signals(say: Callable[[str], None]) -> Iterator[Cancellation]:
    """Signals end the work inside with all that has to be tidied up; gives what stops it after a segment.

    The first Ctrl-C asks to stop after the segment that is being rendered; the second one, and any SIGTERM or SIGHUP,
    raise SystemExit at once.
    """
    cancel = Cancellation()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if cancel.requested:
            stop(number, frame)
        cancel.after_segment()
        say("stopping when this segment is finished; Ctrl-C again stops at once")

    def stop(number: int, frame: FrameType | None) -> None:
        for other in previous:  # tidying up is not to be interrupted
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(exit_status(number))

    previous: dict[int, Any] = {}
    try:
        for number, handler in [(signal.SIGINT, interrupt), *((number, stop) for number in ABRUPT)]:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets SIGHUP
                previous[number] = signal.signal(number, handler)
        yield cancel
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
