"""The I/O threads of a store: they move blocks of requests, what somebody waits for first, then reads, then writes.

A read is needed at a fixed moment of the backward, in the order in which it was asked for; a write only frees memory. Two locks
never meet: the queue has one, and nothing that a finalizer may call takes it.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from memcompile.errors import TierUnavailableError
from memcompile.runtime.transfers.memory import Bytes

Move = Callable[[int, "Scratch"], None]


class Scratch:
    """The staging memory of one thread, made when it is first needed. ``make`` is kept as long as the memory is of its kind."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._made: dict[Callable[[int], Bytes], Bytes] = {}

    def get(self, make: Callable[[int], Bytes], length: int) -> Bytes:
        """``length`` bytes of memory that ``make`` makes."""
        if make not in self._made:
            self._made[make] = make(self.size_bytes)
        return self._made[make][:length]


class TransferRequest:
    """``count`` blocks to move. ``move(index, scratch)`` moves one, and holds the memory that it moves until all are done."""

    def __init__(self, move: Move, count: int, *, is_read: bool) -> None:
        self.move: Move | None = move
        self.count = self.left = count
        self.next = 0
        self.is_read = is_read
        self.ready = self.urgent = self.cancelled = False
        self.done = threading.Event()
        self.failure: BaseException | None = None
        self.after: TransferRequest | None = None
        self.followers: list[TransferRequest] = []


class Workers:
    """Threads and their queue. They start with the first request, and end after `stop` with a call of ``on_exit``.

    At the end of the process they are closed: Python ends a thread that still runs then by unwinding its stack, which aborts
    the process wherever that passes through C++.
    """

    def __init__(self, name: str, threads: int, block_bytes: int, on_exit: Callable[[], None]) -> None:
        self.name, self.count, self.block_bytes = name, threads, block_bytes
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._urgent: deque[TransferRequest] = deque()
        self._reads: deque[TransferRequest] = deque()
        self._writes: deque[TransferRequest] = deque()
        self._pending: set[TransferRequest] = set()
        self._wake: SimpleQueue[bool] = SimpleQueue()  # one True a block that is ready; its put() is safe in a finalizer
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._stopped = self._closing = False
        self._process = os.getpid()

    def submit(self, request: TransferRequest, after: TransferRequest | None = None) -> None:
        """Start moving, once ``after`` is done. Raises `TierUnavailableError` in a forked process and after `stop`."""
        if not request.count:
            request.move = None
            request.done.set()
            return
        with self._lock:
            self.check_alive()
            if not self._threads:
                self._start()
            self._pending.add(request)
            if after is None or after.done.is_set():
                self._enqueue(request)
            else:
                request.after = after
                after.followers.append(request)

    def settle(self, request: TransferRequest) -> None:
        """Return when all blocks are done, or failed: from now on this request comes first."""
        if not request.done.is_set():
            self.check_alive()
            self._promote(request)
            request.done.wait()

    def wait(self, request: TransferRequest) -> None:
        """`settle`, and raise what went wrong."""
        self.settle(request)
        if request.failure is not None:
            raise fresh(request.failure)

    def check_alive(self) -> None:
        """Raises `TierUnavailableError` where there are no threads: in a forked process, after `stop` or `close`."""
        if os.getpid() != self._process:
            raise TierUnavailableError(self.name, "this is a forked process", "Run the model in the process that compiled it.")
        if self._stopped or self._closing:
            raise self._closed()

    def stop(self) -> None:
        """Let the threads end when they are through. Takes no lock: finalizers call this, from any thread."""
        if self._stopped or os.getpid() != self._process:
            return
        self._stopped = True
        if not self._threads:
            self._on_exit()
        for _ in self._threads:
            self._wake.put(False)

    def close(self) -> None:
        """Give up what is under way, and return when the threads have ended. Who waits gets a `TierUnavailableError`."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closing = True
            pending = list(self._pending)
            for request in pending:
                request.failure = request.failure or self._closed()
        for request in pending:
            request.done.wait()
        self.stop()
        for thread in self._threads:
            thread.join()

    def _closed(self) -> TierUnavailableError:
        return TierUnavailableError(self.name, "it was closed", "Compile the model again.")

    def _start(self) -> None:
        self._running = self.count
        self._threads = [threading.Thread(target=_work, args=(self,), name=self.name, daemon=True) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    def _enqueue(self, request: TransferRequest) -> None:
        request.ready = True
        (self._urgent if request.urgent else self._reads if request.is_read else self._writes).append(request)
        for _ in range(request.count):
            self._wake.put(True)

    def _promote(self, request: TransferRequest) -> None:
        with self._lock:
            wanted: TransferRequest | None = request
            while wanted is not None and not wanted.urgent:
                wanted.urgent = True
                if wanted.ready:
                    self._urgent.append(wanted)
                wanted = wanted.after

    def _next(self) -> tuple[TransferRequest, int]:
        with self._lock:
            for queue in (self._urgent, self._reads, self._writes):
                while queue:
                    request = queue[0]
                    if request.next + 1 >= request.count:
                        queue.popleft()
                    if request.next < request.count:
                        request.next += 1
                        return request, request.next - 1
        raise AssertionError("as many wake-ups as blocks")

    def step(self, scratch: Scratch) -> None:
        """Move one block. An error, of any kind, goes to who waits for the request."""
        request, index = self._next()
        try:
            if request.move is not None and request.failure is None and not request.cancelled:
                request.move(index, scratch)
        except BaseException as error:  # noqa: BLE001 (a thread that died would leave its waiters waiting for ever)
            request.failure = request.failure or fresh(error)
        with self._lock:
            request.left -= 1
            if request.left:
                return
        request.move = None  # before anybody hears that the memory is free
        with self._lock:
            self._pending.discard(request)
            request.after = None
            request.done.set()
            for follower in request.followers:
                self._enqueue(follower)
            request.followers.clear()

    def leave(self) -> None:
        """A thread ends."""
        with self._lock:
            self._running -= 1
            last = not self._running
        if last:
            atexit.unregister(self.close)
            self._on_exit()


def _work(workers: Workers) -> None:
    scratch = Scratch(workers.block_bytes)
    while workers._wake.get():
        workers.step(scratch)
    workers.leave()


def fresh(error: BaseException) -> BaseException:
    """The same error without its traceback, whose frames hold tensors: raising one object again and again would keep them."""
    kind = type(error)
    copy = kind.__new__(kind, *error.args)
    copy.args = error.args  # (MemoryError's constructor leaves them out)
    copy.__dict__.update(error.__dict__)
    return copy
