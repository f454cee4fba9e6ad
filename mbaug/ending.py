"""How what was begun ends: a command that is told to end does so as by Ctrl-C, and no child outlives its parent."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_by_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM, and SIGHUP unless it is ignored as under nohup, raise KeyboardInterrupt in the main thread."""
    asked = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, signal.default_int_handler) for name in asked}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def with_parent(parent: int) -> None:
    """Makes a child process end within a second or two of its parent, however that ends: kill -9 tells the children nothing."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # also in the middle of a step: the last checkpoint is whole

    threading.Thread(target=wait, daemon=True).start()
