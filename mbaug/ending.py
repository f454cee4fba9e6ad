"""How processes end: a termination signal acts like Ctrl-C, and no child process outlives its parent."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_by_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, unless ignored, as nohup does with SIGHUP."""
    handled = [name for name in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) is not signal.SIG_IGN]
    previous = {name: signal.signal(name, signal.default_int_handler) for name in handled}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def with_parent(parent: int) -> None:
    """Ends this child process within two seconds of its parent's death. Needed for kill -9, which sends children no signal."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # safe in the middle of a step: checkpoints are written atomically

    threading.Thread(target=wait, daemon=True).start()
