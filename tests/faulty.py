"""A little server of event streams in a thread, which misbehaves as a test asks of it."""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CHUNKED = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
OK = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
END = b""
"""Among the pieces for a stream: it ends here."""

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_LAST = re.compile(rb"last-event-id: (\d+)", re.IGNORECASE)

Deliver = Callable[[int, int, bytes], list[bytes]]
"""What stream ``s`` is sent for event ``n``, both counted from 0, whose block is given."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(_: int, __: int, block: bytes) -> list[bytes]:
    """As it should be."""
    return [chunk(block)]


@dataclass
class Faulty:
    """Publish with any POST; subscribe with any GET."""

    deliver: Deliver = whole
    answer: str = CHUNKED
    """To a GET; one that is no success is all there is."""
    accept: str = OK
    """To a POST."""
    resume: bool = False
    """Whether ``Last-Event-ID`` is honoured."""
    opening: bytes = b": hello\nretry: 50\n\n"
    ids: bool = True
    tls: ssl.SSLContext | None = None
    port: int = 0
    blocks: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    _streams: list[tuple[int, queue.SimpleQueue[bytes | None]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _opened: int = 0

    @property
    def url(self) -> str:
        """Where its stream is."""
        return f"http{'s' if self.tls else ''}://localhost:{self.port}/stream"

    def serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            if self.tls is not None:
                sock = stack.enter_context(self.tls.wrap_socket(sock, server_side=True))
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    if not (piece := sock.recv(65536)):
                        return
                    data += piece
                head, _, data = data.partition(b"\r\n\r\n")
                self.requests.append(head)
                if head.startswith(b"GET"):
                    sock.sendall(self.answer.encode())
                    if self.answer.split()[1] == "200":
                        self._stream(sock, _LAST.search(head))
                    return
                length = _LENGTH.search(head)
                wanted = int(length[1]) if length else 0
                while len(data) < wanted:
                    if not (piece := sock.recv(65536)):
                        return
                    data += piece
                if self.accept.split()[1][0] == "2":
                    self.publish(data[:wanted])
                data = data[wanted:]
                sock.sendall(self.accept.encode())

    def publish(self, data: bytes) -> None:
        """One event more, for all who listen."""
        with self._lock:
            number = len(self.blocks)
            id = b"id: %d\n" % number if self.ids else b""
            self.blocks.append(id + b"data: " + data + b"\n\n")
            for index, pieces in self._streams:
                for piece in self.deliver(index, number, self.blocks[number]):
                    pieces.put(piece or None)

    def _stream(self, sock: socket.socket, last: re.Match[bytes] | None) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with self._lock:
            pieces.put(chunk(self.opening) if self.answer == CHUNKED else self.opening)
            if self.resume and last:
                for block in self.blocks[int(last[1]) + 1 :]:
                    pieces.put(chunk(block))
            mine = (self._opened, pieces)
            self._streams.append(mine)
            self._opened += 1
        try:
            while (piece := pieces.get()) is not None:
                sock.sendall(piece)
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._streams.remove(mine)

    @contextlib.contextmanager
    def running(self) -> Iterator[Faulty]:
        """Serve for the length of the block."""
        threads: list[threading.Thread] = []
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.port = listener.getsockname()[1]
            socks: list[socket.socket] = []

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        sock = listener.accept()[0]
                        socks.append(sock)
                        threads.append(threading.Thread(target=self.serve, args=(sock,)))
                        threads[-1].start()

            accepting = threading.Thread(target=accept)
            accepting.start()
            try:
                yield self
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join()
                for _, pieces in list(self._streams):
                    pieces.put(None)
                for sock in socks:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join()
