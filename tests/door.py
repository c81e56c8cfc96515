"""A way to a server that can be held up, and shut: a TCP proxy in threads, for tests of who lags and who comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from .serving import Server, free_port

LITTLE = 8 * 1024
"""Bytes the kernel is asked to keep of what the server sends and nobody reads: so that soon the server keeps it."""


class Door:
    """A port that leads to a server; a context manager that leaves nothing of it."""

    def __init__(self, server: Server) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._target = ("127.0.0.1", server.port)
        self._passes = threading.Event()  # what the server sends
        self._passes.set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()

    def open(self) -> None:
        """Let clients in."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def shut(self) -> None:
        """Refuse who comes, and break off what there is."""
        with self._lock:
            if self._listener is not None:
                _end(self._listener)
            self._listener = None
            _end(*self._sockets)
            self._sockets.clear()
        self._passes.set()

    def hold(self) -> None:
        """Read nothing more of what the server sends; nobody is broken off."""
        self._passes.clear()

    def release(self) -> None:
        """Read on."""
        self._passes.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is shut
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._connect, args=[listener, client], daemon=True).start()

    def _connect(self, listener: socket.socket, client: socket.socket) -> None:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
        try:
            server.connect(self._target)
        except OSError:  # it is not there
            _end(client, server)
            return
        with self._lock:
            if self._listener is not listener:  # it was shut meanwhile
                _end(client, server)
                return
            self._sockets |= {client, server}
        threading.Thread(target=self._pass_on, args=[client, server], daemon=True).start()
        self._pass_on(server, client, self._passes)

    def _pass_on(self, source: socket.socket, sink: socket.socket, passes: threading.Event | None = None) -> None:
        try:
            while True:
                if passes is not None:
                    passes.wait()
                piece = source.recv(LITTLE)
                if not piece:
                    break
                sink.sendall(piece)
        except OSError:
            pass
        finally:
            with self._lock:
                self._sockets -= {source, sink}
                _end(source, sink)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shut()


def _end(*sockets: socket.socket) -> None:
    """Close them, also under another thread that waits for one."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
