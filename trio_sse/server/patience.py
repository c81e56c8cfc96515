"""How long a client may take little, or nothing, of what waits for it.

Facts: a socket that can be written to says little about its client, because the kernel takes bytes in lumps, and none
for a long time from one who writes to a slow reader. What the client has taken is what its kernel has acknowledged.

Plan: who waits for a client looks at that a few times in a write timeout. It waits no longer when the client took
nothing for that long, or too little over a minute. Where nobody waits, the kernel has all the bytes, and looks itself
(``TCP_USER_TIMEOUT``).

Trap: the kernel counts from the moment at which the client's window was too narrow for the next segment until one at
which it is wide enough, however much the client takes in between; so it would end slow readers. From the first wait for
a client on, the kernel is told not to look at it, and one task looks at all such clients in its place.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from fcntl import ioctl

import trio

from .. import background
from .limits import limits

LOOKS = 4
"""So often in a write timeout is looked at a client; so it may last so much of it longer until one is let go."""

AT_ONCE = 256
"""So many connections are looked at before other tasks have their turn."""

RATE_WINDOW_S = 60
RATE_BYTES_PER_S = 1024
"""A client that takes less than this, over a minute in which bytes waited for it, is let go."""

_TCP_INFO = struct.Struct("=24xI92xQ16xI")
"""Of the kernel's ``tcp_info``: segments on their way, bytes acknowledged, bytes not sent."""

_INT = struct.Struct("=i")


class Allowance:
    """What a client took, and how long bytes waited for it meanwhile.

    A minute of waiting begins anew as soon as the client has taken enough for one. So what it took before it became
    slow does not count for long.
    """

    __slots__ = ("_bytes", "_seconds", "_taken")

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0
        self._taken: int | None = None

    def note(self, taken: int, seconds: float = 0) -> bool:
        """Whether the client took anything since the last note.

        ``taken`` is a count of all that it took, of which only differences matter; ``seconds`` is for how long bytes
        have waited since then.
        """
        more = 0 if self._taken is None else max(0, taken - self._taken)
        self._taken = taken
        self._bytes += more
        self._seconds += seconds
        if self._bytes >= RATE_BYTES_PER_S * RATE_WINDOW_S:
            self._bytes, self._seconds = 0, 0.0
        return more > 0

    def is_spent(self) -> bool:
        """Whether bytes waited for a minute, and the client did not take enough for one."""
        return self._seconds >= RATE_WINDOW_S


async def wait_for_client(
    wait: Callable[[], Awaitable[object]], taken: Callable[[], int], allowance: Allowance
) -> None:
    """Wait for what comes to pass when a client takes bytes, for as long as it does take them.

    ``wait`` may be cancelled and called again; ``taken`` counts what the client took.

    Raises:
      trio.TooSlowError: it took nothing for a write timeout, or too little over a minute, or the time is over for
        all writes or for this task's.
    """
    allowance.note(taken())
    began = moved = trio.current_time()
    while True:
        with limits.write(began + limits.write_timeout_s / LOOKS) as scope:
            await wait()
        now = trio.current_time()
        if allowance.note(taken(), now - began):
            moved = now
        if allowance.is_spent():
            raise trio.TooSlowError
        if not scope.cancelled_caught:
            return
        if now - moved >= limits.write_timeout_s or now >= limits.last_deadline():
            raise trio.TooSlowError
        began = now


def bytes_taken(sock: trio.socket.SocketType) -> int:
    """How many bytes a client's kernel has taken; a count of which only differences matter.

    Of a Unix socket it is what the client has read, as long as nothing is written. Of a closed one it is 0.
    """
    try:
        if sock.family == socket.AF_UNIX:
            waiting: int = _INT.unpack(ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))[0]
            return -waiting
        return _look(sock)[0]
    except (OSError, ValueError):
        return 0


def _look(sock: trio.socket.SocketType) -> tuple[int, bool]:
    """How many bytes the client's kernel has acknowledged; and whether ours still has some for it."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    on_their_way, acknowledged, not_sent = _TCP_INFO.unpack(info)
    return acknowledged, bool(on_their_way or not_sent)


class SlowReaders:
    """The connections whose clients had to be waited for once; one task looks at them."""

    def __init__(self) -> None:
        self._slow: dict[trio.socket.SocketType, _Slow] = {}
        self._is_running = False

    @classmethod
    def of_run(cls) -> SlowReaders:
        """Those of this run of Trio."""
        readers = _slow_readers.get()
        if readers is None:
            _slow_readers.set(readers := cls())
        return readers

    def add(self, sock: trio.socket.SocketType, let_go: Callable[[], None]) -> None:
        """Look at this connection in place of the kernel; ``let_go`` ends it, unless somebody waits for its client."""
        if sock in self._slow or sock.family == socket.AF_UNIX:
            return
        self._slow[sock] = _Slow(let_go)
        with contextlib.suppress(OSError):  # it is closed, as will be seen
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        if not self._is_running:
            self._is_running = True
            background.spawn(self._run)

    async def _run(self) -> None:
        while self._slow:
            await trio.sleep(limits.write_timeout_s / LOOKS)
            for number, (sock, slow) in enumerate(list(self._slow.items()), start=1):
                if not slow.look(sock):
                    del self._slow[sock]
                if number % AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
        self._is_running = False


class _Slow:
    """A connection that is looked at."""

    __slots__ = ("_let_go", "_moved_at", "_taken")

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go
        self._taken = -1
        self._moved_at = 0.0

    def look(self, sock: trio.socket.SocketType) -> bool:
        """Whether to look again."""
        try:
            taken, some_waits = _look(sock)
        except OSError:  # it is closed
            return False
        now = trio.current_time()
        if taken != self._taken or not some_waits:
            self._taken, self._moved_at = taken, now
        elif now - self._moved_at >= limits.write_timeout_s:
            self._let_go()
        return True


_slow_readers: trio.lowlevel.RunVar[SlowReaders | None] = trio.lowlevel.RunVar("trio_sse_slow_readers", None)
