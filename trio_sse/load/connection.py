"""One connection that never blocks: TCP, TLS where it is asked for, then a request; and the loop that wakes it."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

from .target import Site

READ_BYTES = 16 * 1024
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Turn = Callable[[int], None]
"""Something can be done with a descriptor; it is told what epoll says."""


class Loop:
    """An epoll, and who is to be called when one of its descriptors is ready."""

    def __init__(self) -> None:
        self.epoll: Final = select.epoll()
        self.turns: Final[dict[int, Turn]] = {}

    def watch(self, connection: Connection, turn: Turn) -> None:
        """Call ``turn`` when a new connection can go on."""
        fd = connection.fileno
        self.turns[fd] = turn
        self.epoll.register(fd, connection.wants)

    def advance(self, connection: Connection) -> None:
        """Let it do what it can, and watch for what it waits for then.

        Raises:
          OSError: that was the end of it.
        """
        watched = connection.wants
        connection.advance()
        if connection.wants != watched:
            self.epoll.modify(connection.fileno, connection.wants)

    def close(self, connection: Connection) -> None:
        """The end of a connection; the kernel takes it out of the epoll itself."""
        self.turns.pop(connection.fileno, None)
        connection.sock.close()


class Connection:
    """A socket on its way, and what is still to be written to it."""

    __slots__ = ("_connected", "_out", "_secured", "_site", "fileno", "sock", "wants")

    def __init__(self, site: Site, request: bytes, *, receive_bytes: int | None = None) -> None:
        """Begin to connect.

        Raises:
          OSError: it cannot even be tried, above all where there are no descriptors or ports left.
        """
        sock = socket.socket(site.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if receive_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = sock.connect_ex(site.address)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except OSError:
            sock.close()
            raise
        self.sock = sock
        self.fileno: Final = sock.fileno()  # TLS takes the socket over, and keeps the number
        self.wants = select.EPOLLOUT
        self._site: Final = site
        self._connected = False
        self._secured = site.tls is None
        self._out = bytearray(request)

    @property
    def unsent(self) -> int:
        """Bytes that were given to :meth:`send` and are still here."""
        return len(self._out)

    def advance(self) -> None:
        """Do what can be done now of connecting, the handshake and writing; ``wants`` then says what is waited for.

        Raises:
          OSError: that was the end of it.
        """
        try:
            if not self._connected:
                self._finish_connecting()
            if not self._secured:
                assert isinstance(self.sock, ssl.SSLSocket)
                self.sock.do_handshake()
                self._secured = True
            while self._out:
                del self._out[: self.sock.send(self._out)]
            self.wants = select.EPOLLIN
        except ssl.SSLWantReadError:
            self.wants = select.EPOLLIN
        except (BlockingIOError, ssl.SSLWantWriteError):
            # With requests under way the other side may be waiting for us to read.
            self.wants = select.EPOLLIN | select.EPOLLOUT if self._secured and self._connected else select.EPOLLOUT

    def _finish_connecting(self) -> None:
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        try:
            self.sock.getpeername()
        except OSError:
            raise BlockingIOError from None
        if self._site.tls is not None:
            self.sock = self._site.tls.wrap_socket(
                self.sock, server_hostname=self._site.name, do_handshake_on_connect=False
            )
        self._connected = True

    def send(self, data: bytes) -> None:
        """Add to what is to be written; :meth:`advance` writes it."""
        self._out += data

    def read(self, most: int = READ_BYTES) -> bytes | None:
        """What is there; none when there is nothing now, and nothing at all when it has ended, however it did."""
        try:
            return self.sock.recv(most)
        except _NOT_NOW:
            return None
        except OSError:
            return b""

    @property
    def is_secure(self) -> bool:
        """Whether TLS may hold bytes that epoll knows nothing of: then read until there is nothing."""
        return self._site.tls is not None
