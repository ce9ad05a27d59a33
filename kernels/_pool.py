"""Threads that share the work of calls."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from coppice.kernels._errors import KernelError
from coppice.kernels._load import Library, load


class Pool:
    """Threads of the C library, side by side with torch's: ``matmul(..., pool=Pool(2))``.

    A pool serves one call at a time; calls from several Python threads wait for each other. After a fork the child
    starts threads of its own at its first call. The threads end with :meth:`close`, or with the object.

    Args:
        threads: 1 .. 256, the caller's among them; None: the cores that this process may use.

    Raises:
        KernelError: not so many threads, or the system gives none.
        KernelsUnavailable: there is no C library.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        self._lock = threading.Lock()
        self._library = load()
        self._process = 0
        self._start()

    def _start(self) -> None:
        c, ffi = self._library.c, self._library.ffi
        size = c.coppice_pool_bytes(self.threads)
        self._expect(min(0, size))
        memory = ffi.new("char[]", size + 64)
        base = int(ffi.cast("intptr_t", memory))
        self._pool = ffi.cast("coppice_pool *", base + -base % 64)
        self._expect(c.coppice_pool_start(self._pool, size, self.threads))
        self._process = os.getpid()
        self._end = weakref.finalize(self, _stop, self._library, self._pool, memory, self._process)

    def _expect(self, status: int) -> None:
        if status:
            fact = self._library.status_text(status)
            raise KernelError(fact, place=f"Pool({self.threads})", remedy="ask for as many as there are cores")

    def run(self, variant: int, args: Any) -> int:
        """The status of one call, its arguments as ``abi.h`` has them."""
        with self._lock:
            if self._process != os.getpid():  # threads do not come along with a fork
                self._end.detach()
                self._start()
            if not self._end.alive:
                raise KernelError("it is closed", place="Pool", remedy="make another")
            return int(self._library.c.coppice_pool_run(self._pool, variant, args))

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._end()


def _stop(library: Library, pool: Any, memory: Any, process: int) -> None:
    """``memory`` is held until the threads have ended."""
    if process == os.getpid():
        library.c.coppice_pool_stop(pool)
    del memory
