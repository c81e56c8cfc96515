"""What a topic is, and the selectors that choose topics.

A topic is ``/``-separated text, such as ``room/42``. In a selector ``*`` stands for one segment and a last
``**`` for one or more. Topics under ``user/`` are private, so wildcards never reach them: only a selector
that names one whole matches it.

Matching walks both sides once, so no selector can be made expensive. Nor can many of them (:mod:`.selector_index`):
that rests on two bounds, on the segments of what is published to and of wildcards, and on the ``*`` in a selector. A
selector that names one whole topic is as cheap whatever its depth, and may name one that was kept before there were
bounds. Two selectors always meet in one selector
or in none (:meth:`Selector.meet`): what a caller asked for, cut down to what its token allows, is again a
plain set of selectors, and nothing behind the door needs to know of tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import unquote_to_bytes

from .errors import InvalidTopic, TooWild

MAX_TOPIC = 256
"""Most bytes of UTF-8 in a topic or a selector."""

MAX_SEGMENTS = 32
"""Most segments of a topic that is published to, and of a selector with wildcards: as deep as anybody names things,
and a bound on the steps of a look-up."""

MAX_STARS = 3
"""Most ``*`` in a selector, beside a last ``**``. At each of them a look-up goes two ways, so this bounds how many ways
there are: 5,489 through the 32 segments of a topic."""

PRIVATE = "user"
"""The first segment of private topics: ``user/<sub>`` is somebody's own inbox."""

_WILDCARDS = ("*", "**")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def check_topic(text: str) -> str:
    """The same text, if it is a topic.

    Raises:
      InvalidTopic: it is not; the message says which rule it breaks.
    """
    for segment in _segments("topic", text):
        if segment in _WILDCARDS:
            raise InvalidTopic(f"a topic has no wildcards: the segment {segment!r} belongs in a selector")
    return text


def check_new_topic(text: str) -> str:
    """The same text, if it is a topic that may be published to.

    Raises:
      InvalidTopic: it is not; the message says which rule it breaks.
    """
    count = check_topic(text).count("/") + 1
    if count > MAX_SEGMENTS:
        raise InvalidTopic(f"the topic has {count} segments; {MAX_SEGMENTS} are allowed")
    return text


def topic_from_path(raw: bytes) -> str:
    """The topic that a percent-encoded piece of a path names.

    Takes the raw path because a router's decoding is lossy: it turns ``%ff`` and ``%fe`` into one character.
    """
    if _BAD_ESCAPE.search(raw):
        raise InvalidTopic("the topic in the path has a % that no two hexadecimal digits follow: write it as %25")
    try:
        return check_topic(unquote_to_bytes(raw).decode())
    except UnicodeDecodeError:
        raise InvalidTopic("the topic in the path is not percent-encoded UTF-8") from None


def inbox(subject: str) -> str:
    """The private topic of one subject."""
    return f"{PRIVATE}/{subject}"


@dataclass(frozen=True, slots=True)
class Selector:
    """A topic, or a pattern of topics, such as ``room/*``."""

    text: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a selector.

        Raises:
          InvalidTopic: it breaks a rule of topics, has ``**`` before its end, or has a wildcard under ``user/``.
          TooWild: it has wildcards, and more segments or ``*`` than allowed.
        """
        segments = _segments("selector", text)
        if "**" in segments[:-1]:
            raise InvalidTopic("in a selector ** may only be the last segment")
        exact = not any(segment in _WILDCARDS for segment in segments)
        if segments[0] == PRIVATE and not exact:
            raise InvalidTopic(f"wildcards never reach {PRIVATE}/: name the topic")
        if not exact and len(segments) > MAX_SEGMENTS:
            raise TooWild(f"the selector has {len(segments)} segments; with wildcards {MAX_SEGMENTS} are allowed")
        if (stars := segments.count("*")) > MAX_STARS:
            raise TooWild(f"the selector has {stars} times *; {MAX_STARS} are allowed, and ** as the last segment")
        return cls(text, exact)

    def matches(self, topic: str) -> bool:
        """Whether this selector chooses the topic, in time linear in both."""
        if self.exact:
            return self.text == topic
        mine, its = self.text.split("/"), topic.split("/")
        if its[0] == PRIVATE and len(its) > 1:
            return False
        if mine[-1] == "**":
            mine.pop()
            if len(its) <= len(mine):
                return False
        elif len(its) != len(mine):
            return False
        return all(one in ("*", other) for one, other in zip(mine, its, strict=False))

    def meet(self, other: Selector) -> Selector | None:
        """The selector of exactly the topics both choose, if there are any."""
        if self.exact or other.exact:
            one, many = (self, other) if self.exact else (other, self)
            return one if many.matches(one.text) else None
        mine, its = self.text.split("/"), other.text.split("/")
        met: list[str] = []
        for place, (one_segment, other_segment) in enumerate(zip(mine, its, strict=False)):
            if one_segment == "**":
                return _met(met + its[place:])
            if other_segment == "**":
                return _met(met + mine[place:])
            if one_segment != other_segment and "*" not in (one_segment, other_segment):
                return None
            met.append(other_segment if one_segment == "*" else one_segment)
        return _met(met) if len(mine) == len(its) else None

    def contains(self, other: Selector) -> bool:
        """Whether it chooses every topic that the other chooses."""
        if self.exact or other.exact:
            return other.exact and self.matches(other.text)
        mine, its = self.text.split("/"), other.text.split("/")
        if mine[-1] != "**":
            if its[-1] == "**" or len(its) != len(mine):
                return False
        else:
            mine.pop()
            if len(its) <= len(mine):
                return False
        return all(one in ("*", two) for one, two in zip(mine, its, strict=False))


def parse_selectors(texts: Iterable[str]) -> tuple[Selector, ...]:
    """Several selectors, each once, in the order given."""
    return tuple(dict.fromkeys(map(Selector.parse, texts)))


def meet_all(asked: Iterable[Selector], allowed: Iterable[Selector]) -> tuple[Selector, ...]:
    """The selectors of exactly the topics that are both asked for and allowed; each once."""
    allowed = tuple(allowed)
    met = (one.meet(other) for one in asked for other in allowed)
    return tuple(dict.fromkeys(selector for selector in met if selector is not None))


def matching(selectors: Iterable[Selector], topic: str) -> bool:
    """Whether any of the selectors chooses the topic."""
    return any(selector.matches(topic) for selector in selectors)


def _met(segments: list[str]) -> Selector | None:
    text = "/".join(segments)
    if len(text.encode()) > MAX_TOPIC + text.endswith("**"):  # even the shortest topic it chooses would be too long
        return None
    return Selector(text, exact=not any(segment in _WILDCARDS for segment in segments))


@lru_cache(maxsize=4096)
def _segments(what: str, text: str) -> tuple[str, ...]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidTopic(f"the {what} holds half of a surrogate pair, which UTF-8 cannot say") from None
    if not text:
        raise InvalidTopic(f"the {what} is empty: name one, such as lobby or room/42")
    if size > MAX_TOPIC:
        raise InvalidTopic(f"the {what} has {size} bytes; {MAX_TOPIC} are allowed")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
            raise InvalidTopic(f"the {what} holds U+{ord(character):04X}, a control or format character: leave it out")
    if not unicodedata.is_normalized("NFC", text):
        raise InvalidTopic(f"the {what} is not in Unicode normal form C: normalise it first")
    segments = tuple(text.split("/"))
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidTopic(f"the {what} has the segment {segment!r}: every segment needs a name")
    return segments
