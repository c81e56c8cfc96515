"""Attacks on the parsing of requests: how one is written down, how it is carried out, and how new ones are made of old.

An attack is a file in ``corpus``: one step a line, ``#`` before what makes it an attack. In what is sent, ``\\r``,
``\\n``, ``\\x..`` and ``\\\\`` stand for bytes; nothing is added to it::

    send GET / HTTP/1.1\\r\\n       bytes
    10000 send X: y\\r\\n           as often; so for every step that sends, and for a pause
    preface                       an HTTP/2 client's preface, and a stream of events on stream 1
    headers 0x5 3 :path=/ | a=b   an HTTP/2 HEADERS frame: flags, stream, and fields in HPACK without compression
    frame DATA 0x1 3 hello        any HTTP/2 frame: type, flags, stream, payload; 3-9 is one on each of 3, 5, 7, 9
    await                         what is answered, for a moment
    pause                         a twentieth of a second
    finish                        send no more (FIN), and read what is answered
    reset                         leave with a RST; otherwise a FIN is the end

An attack that begins with ``preface`` is for HTTP/2, any other for HTTP/1.1; one whose file is called ``tls …`` is for
the bare socket of a TLS port.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FRAMES = (
    *("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE"),
    "CONTINUATION",
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE_S = 0.1
"""How long an attacker waits for an answer, or for its bytes to be taken."""
LARGEST_WINDOW = 2**31 - 1
SENDS = ("send", "frame")
STEPS = ("await", "pause", "finish", "reset")


def frame(kind: int, flags: int, stream: int, payload: bytes, *, length: int | None = None) -> bytes:
    """An HTTP/2 frame (RFC 9113 § 4.1); its length may be a lie."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + struct.pack("!BBL", kind, flags, stream) + payload


def header_block(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Fields in HPACK as literals that are never indexed (RFC 7541 § 6.2.3): they depend on nothing before."""
    return b"".join(b"\x10" + _literal(name) + _literal(value) for name, value in fields)


def _literal(text: bytes) -> bytes:
    rest = len(text) - 127
    if rest < 0:
        return bytes([len(text)]) + text
    size = b"\x7f"
    while rest >= 128:
        size += bytes([rest % 128 + 128])
        rest //= 128
    return size + bytes([rest]) + text


def h2_subscription(target: str, cursor: str | None = None) -> bytes:
    """An HTTP/2 connection whose stream 1 is a stream of events, with so much window that it never asks for more."""
    fields = [(b":method", b"GET"), (b":path", target.encode()), (b":scheme", b"http"), (b":authority", b"localhost")]
    if cursor is not None:
        fields.append((b"last-event-id", cursor.encode()))
    settings = struct.pack("!HL", 4, LARGEST_WINDOW)
    window = struct.pack("!L", LARGEST_WINDOW - 65535)
    return PREFACE + frame(4, 0, 0, settings) + frame(8, 0, 0, window) + frame(1, 5, 1, header_block(fields))


def h1_subscription(target: str, cursor: str | None = None) -> bytes:
    """A stream of events over HTTP/1.1."""
    resumed = "" if cursor is None else f"Last-Event-ID: {cursor}\r\n"
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{resumed}\r\n".encode()


@dataclass(frozen=True)
class Step:
    """Something that an attacker does; one that sends has bytes, or a frame of HTTP/2."""

    verb: str
    data: bytes = b""
    times: int = 1
    head: tuple[int, int, int] | None = None
    """Of a frame: its type, its flags and its stream."""

    def sent(self) -> bytes:
        """The bytes that it sends."""
        return (self.data if self.head is None else frame(*self.head, self.data)) * self.times

    def __str__(self) -> str:
        text = escape(self.data)
        if self.head is not None:
            kind, flags, stream = self.head
            name = FRAMES[kind] if kind < len(FRAMES) else str(kind)
            text = f"{name} {flags:#x} {stream} {text}"
        return " ".join(part for part in (str(self.times) if self.times > 1 else "", self.verb, text) if part)


@dataclass(frozen=True)
class Attack:
    """What one attacker does on one connection."""

    name: str
    steps: tuple[Step, ...]

    @property
    def is_h2(self) -> bool:
        return self.steps[0].verb == "preface"

    @property
    def is_below_tls(self) -> bool:
        return self.name.startswith("tls ")

    def __str__(self) -> str:
        return "".join(f"{step}\n" for step in self.steps)


def escape(data: bytes) -> str:
    """Bytes as a file of the corpus has them; a space at either end is written out."""
    text = data.decode("latin-1").encode("unicode_escape").decode()
    text = re.sub("^ | $", r"\\x20", text)
    return re.sub(r"\\t", r"\\x09", text)


def unescape(text: str) -> bytes:
    """The reverse of :func:`escape`."""
    return text.encode().decode("unicode_escape").encode("latin-1")


def parse(name: str, text: str) -> Attack:
    """An attack as it is written down."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return Attack(name, tuple(step for line in lines for step in _parse_steps(line)))


def _parse_steps(line: str) -> Iterator[Step]:
    match = re.match(r"((?:\d+ )?(?:frame \w+|headers) \w+ )(\d+)-(\d+)", line)
    if match is None:
        yield _parse_step(line)
    else:
        for stream in range(int(match[2]), int(match[3]) + 1, 2):
            yield _parse_step(f"{match[1]}{stream}{line[match.end() :]}")


def _parse_step(line: str) -> Step:
    match = re.fullmatch(r"(?:(\d+) )?(\w+)(?: (.*))?", line)
    assert match is not None, line
    times, verb, rest = int(match[1] or 1), match[2], match[3] or ""
    if verb == "send":
        return Step("send", unescape(rest), times)
    if verb == "frame":
        kind, flags, stream, payload = (rest + " ").split(" ", 3)
        number = FRAMES.index(kind) if kind in FRAMES else int(kind)
        return Step("frame", unescape(payload.removesuffix(" ")), times, (number, int(flags, 16), int(stream)))
    if verb == "headers":
        flags, stream, fields = rest.split(" ", 2)
        pairs = [field.partition("=")[::2] if field[0] != ":" else _pseudo(field) for field in fields.split(" | ")]
        block = header_block([(unescape(name), unescape(value)) for name, value in pairs])
        return Step("frame", block, times, (1, int(flags, 16), int(stream)))
    assert verb in (*STEPS, "preface"), line
    return Step(verb, times=times)


def _pseudo(field: str) -> tuple[str, str]:
    name, _, value = field[1:].partition("=")
    return ":" + name, value


def corpus() -> list[Attack]:
    """Every attack that is kept."""
    return [parse(path.stem, path.read_text()) for path in sorted(CORPUS.glob("*.txt"))]


def carry_out(attack: Attack, client: socket.socket, preface: bytes) -> bytes:
    """Attack over a connection, which is closed afterwards unless its server is to say more; what was answered.

    ``preface`` is sent for the step of that name.
    """
    client.settimeout(PATIENCE_S)
    answered = b""
    with contextlib.suppress(OSError):
        for step in attack.steps:
            if step.verb == "preface":
                client.sendall(preface)
            elif step.verb == "await":
                answered += client.recv(65536)
            elif step.verb == "pause":
                time.sleep(0.05 * step.times)
            elif step.verb == "finish":
                client.shutdown(socket.SHUT_WR)
                answered += _rest(client)
            elif step.verb == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            else:
                client.sendall(step.sent())
    return answered


def _rest(client: socket.socket) -> bytes:
    received, until = b"", time.monotonic() + PATIENCE_S
    while time.monotonic() < until and (piece := client.recv(65536)):
        received += piece
    return received


class Fuzzer:
    """Makes attacks of other attacks: the same of the same seed and number."""

    def __init__(self, attacks: Sequence[Attack], seed: int) -> None:
        self.attacks = [attack for attack in attacks if not attack.is_below_tls]
        self.seed = seed

    def attack(self, number: int) -> Attack:
        """The attack of a number."""
        dice = random.Random(f"{self.seed}/{number}")
        old = dice.choice(self.attacks)
        steps = [step if step.times < 100 else replace(step, times=dice.randint(1, 200)) for step in old.steps]
        first = steps[:1] if old.is_h2 and dice.random() < 0.95 else []
        steps = steps[len(first) :]
        for _ in range(dice.choice((1, 1, 1, 2, 3, 5, 8))):
            self._mutate(dice, steps, is_h2=old.is_h2)
        if dice.random() < 0.2:
            steps.append(Step(dice.choice(STEPS)))
        return Attack(f"{self.seed}/{number} of {old.name}", (*first, *steps) or (Step("pause"),))

    def _mutate(self, dice: random.Random, steps: list[Step], *, is_h2: bool) -> None:
        place = dice.randrange(len(steps)) if steps else 0
        what = dice.random()
        if not steps or what < 0.12:  # something of another attack
            other = dice.choice([attack for attack in self.attacks if attack.is_h2 == is_h2 or dice.random() < 0.03])
            cut = dice.randrange(len(other.steps))
            steps[place:place] = [replace(step, times=min(step.times, 50)) for step in other.steps[cut : cut + 4]]
        elif what < 0.2:
            steps.append(steps.pop(place))
        elif what < 0.27:
            del steps[place]
        elif what < 0.35:
            steps.insert(place, Step(dice.choice(STEPS[:2])))
        elif what < 0.42 and steps[place].verb in SENDS:
            steps[place] = replace(steps[place], times=dice.choice((2, 3, 10, 100)))
        elif (head := steps[place].head) is not None and what < 0.7:
            steps[place] = _other_frame(dice, steps[place], head)
        elif steps[place].data:
            steps[place] = replace(steps[place], data=_other_bytes(dice, steps[place].data))


def _other_frame(dice: random.Random, step: Step, head: tuple[int, int, int]) -> Step:
    kind, flags, stream = head
    what = dice.randrange(5)
    if what == 0:
        kind = dice.choice((*range(12), 255))
    elif what == 1:
        flags ^= dice.choice((0x1, 0x4, 0x8, 0x20, 0xFF))
    elif what == 2:
        stream = dice.choice((0, 1, 2, 3, 5, 7, 9, LARGEST_WINDOW, 2**32 - 1))
    elif what == 3:  # a lie about the length
        whole = frame(kind, flags, stream, step.data, length=dice.choice((0, 1, 4, 5, 16384, 16385, 2**24 - 1)))
        return Step("send", whole, step.times)
    else:
        return replace(step, data=struct.pack("!L", dice.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1))) + step.data[4:])
    return replace(step, head=(kind, flags & 0xFF, stream))


ODD = (
    *(
        b"\x00",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b";",
        b"%",
        b"\xff",
        b"\x80",
        b"\xc3\xa9",
        b"\x7f",
    ),
    *(b"0", b"-1", b"18446744073709551616", b"ffffffffffffffffffff", b"1" * 5000, b"x" * 20_000),
    *(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 7\r\n"),
    *(b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"Upgrade: websocket\r\n"),
    *(b"Expect: 100-continue\r\n", b"HTTP2-Settings: AAMAAABk\r\n", b"Last-Event-ID: 1-1\r\n", b"Host: y\r\n"),
    *(
        b"Content-Type: text/event-stream\r\n",
        b"data: x\n\n",
        b"%00",
        b"%ff",
        b"%2e%2e/",
        b"//",
        b"*",
        b"?",
        b"#",
        b"[",
    ),
    *(b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"PRI", b"/events?topic=a"),
    *(b"/topics/a", b"/session", b"0\r\n\r\n", b"5\r\nhello\r\n", PREFACE, frame(4, 0, 0, b"")),
)


def _other_bytes(dice: random.Random, data: bytes) -> bytes:
    place, end = sorted((dice.randrange(len(data) + 1), dice.randrange(len(data) + 1)))
    what = dice.randrange(8)
    if what == 0:
        return data[:place] + data[end:]
    if what == 1:
        return data[:place] + data[place:end] * 2 + data[end:]
    if what == 2:
        return data[:place]
    if what == 3 and place < len(data):
        return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
    if what == 4:
        return data[:place] + dice.randbytes(dice.choice((1, 2, 4, 16, 100))) + data[place:]
    if what == 5 and (words := list(re.finditer(rb"[\w/.*%-]+", data))):
        word = dice.choice(words)
        return data[: word.start()] + dice.choice(ODD) + data[word.end() :]
    if what == 6 and (lines := data.splitlines(keepends=True)):
        lines.insert(dice.randrange(len(lines) + 1), dice.choice(lines))
        return b"".join(lines)
    return data[:place] + dice.choice(ODD) + data[place:]
