"""Selectors by their segments, so that a topic finds those that choose it without asking each; and topics likewise.

Plan: a selector that names one whole topic stands in a dictionary. One with wildcards is a path in a tree whose edges
are runs of segments; ``*`` is a segment like any other there, and a last ``**`` is a mark on the node before it.
A look-up walks down along the topic's own segments and along ``*``, nowhere else.

Cost: a look-up's steps depend on the topic and on the selectors that agree with it so far, never on how many there
are: with at most three ``*`` in a selector and 32 segments in a topic no look-up visits more than
:data:`MOST_VISITS` nodes, and a usual one about one for each segment. An edge holds a run of segments, so a tree
has at most two nodes for each selector.

The topics of a journal are a tree of the same kind, in which a selector finds those it chooses, while they are few.

Trap: wildcards never reach private topics, so a look-up of one never enters the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from math import comb
from typing import Generic, Self, TypeVar

from .topic import MAX_SEGMENTS, MAX_STARS, PRIVATE, Selector

T = TypeVar("T")

MOST_VISITS = sum(comb(depth, stars) for depth in range(MAX_SEGMENTS + 1) for stars in range(MAX_STARS + 1))
"""Nodes that a look-up may visit: at each depth, one for each way to have up to three ``*`` above it."""

STEP = 100
"""Selectors that are compared with all others between two pauses: about half a millisecond."""


class _Node(Generic[T]):
    """A place in the tree: ``label`` are the segments between its parent and itself."""

    __slots__ = ("edges", "here", "label", "rest")

    def __init__(self, label: tuple[str, ...]) -> None:
        self.label = label
        self.edges: dict[str, _Node[T]] = {}
        self.here: T | None = None
        """What stands under the selector, or topic, that ends here."""
        self.rest: T | None = None
        """What stands under the selector that has ``**`` behind this place."""

    @property
    def is_bare(self) -> bool:
        return self.here is None and self.rest is None


class _Tree(Generic[T]):
    """Paths of segments from one root; edges hold runs of segments in which no ways part."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(())

    def _down(self, segments: Sequence[str]) -> list[_Node[T]] | None:
        """The nodes on the way to the one that these segments lead to, if there is one."""
        nodes, place = [self._root], 0
        while place < len(segments):
            node = nodes[-1].edges.get(segments[place])
            if node is None or tuple(segments[place : place + len(node.label)]) != node.label:
                return None
            nodes.append(node)
            place += len(node.label)
        return nodes

    def _make(self, segments: Sequence[str]) -> _Node[T]:
        """The node that these segments lead to, made when it is not there."""
        node, place = self._root, 0
        while place < len(segments):
            child = node.edges.get(segments[place])
            if child is None:
                child = node.edges[segments[place]] = _Node(tuple(segments[place:]))
                return child
            shared = _shared(child.label, segments[place:])
            if shared < len(child.label):
                between: _Node[T] = _Node(child.label[:shared])
                child.label = child.label[shared:]
                between.edges[child.label[0]] = child
                node.edges[segments[place]] = between
                child = between
            node, place = child, place + shared
        return node

    def _prune(self, nodes: list[_Node[T]]) -> None:
        """Leave no node that holds nothing, unless ways part there."""
        while len(nodes) > 1 and nodes[-1].is_bare:
            node = nodes.pop()
            if not node.edges:
                del nodes[-1].edges[node.label[0]]
            elif len(node.edges) == 1:
                (child,) = node.edges.values()
                child.label = node.label + child.label
                nodes[-1].edges[node.label[0]] = child
                return
            else:
                return


class SelectorIndex(_Tree[T]):
    """One thing (never ``None``) under each selector."""

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, T] = {}
        self._wildcards = 0
        self.visits = 0
        """Nodes that look-ups have visited so far."""

    def __len__(self) -> int:
        return len(self._exact) + self._wildcards

    def get(self, selector: Selector) -> T | None:
        """What stands under a selector."""
        if selector.exact:
            return self._exact.get(selector.text)
        segments, deep = _path(selector)
        nodes = self._down(segments)
        if nodes is None:
            return None
        return nodes[-1].rest if deep else nodes[-1].here

    def put(self, selector: Selector, thing: T) -> None:
        """Put a thing under a selector, in place of what stood there."""
        if selector.exact:
            self._exact[selector.text] = thing
            return
        segments, deep = _path(selector)
        node = self._make(segments)
        if (node.rest if deep else node.here) is None:
            self._wildcards += 1
        if deep:
            node.rest = thing
        else:
            node.here = thing

    def remove(self, selector: Selector) -> None:
        """Remove a selector and what stands under it; nothing happens if it is not here."""
        if selector.exact:
            self._exact.pop(selector.text, None)
            return
        segments, deep = _path(selector)
        nodes = self._down(segments)
        if nodes is None or (nodes[-1].rest if deep else nodes[-1].here) is None:
            return
        self._wildcards -= 1
        if deep:
            nodes[-1].rest = None
        else:
            nodes[-1].here = None
        self._prune(nodes)

    def choosing(self, topic: str) -> list[T]:
        """What stands under the selectors that choose a topic; first what names it whole."""
        found = [] if (named := self._exact.get(topic)) is None else [named]
        if self._wildcards:
            found.extend(self._walk(topic.split("/"), deep=False))
        return found

    def chooses(self, topic: str) -> bool:
        """Whether any of the selectors chooses a topic."""
        return topic in self._exact or (
            self._wildcards > 0 and next(self._walk(topic.split("/"), deep=False), None) is not None
        )

    def containing(self, selector: Selector) -> Iterator[T]:
        """What stands under the selectors that choose every topic which the given one chooses, itself among them."""
        if selector.exact:
            return iter(self.choosing(selector.text))
        segments, deep = _path(selector)
        return self._walk(segments, deep)

    def _walk(self, segments: Sequence[str], deep: bool) -> Iterator[T]:
        """The wildcards that choose all that is chosen by these segments, and ``**`` behind them if it is deep."""
        end = len(segments)
        if segments and segments[0] == PRIVATE and end > 1:
            return
        waiting: list[tuple[_Node[T], int]] = [(self._root, 0)]
        while waiting:
            node, place = waiting.pop()
            self.visits += 1
            if place == end:
                if (found := node.rest if deep else node.here) is not None:
                    yield found
                continue
            if node.rest is not None:
                yield node.rest
            segment = segments[place]
            for child in (node.edges.get(segment), None if segment == "*" else node.edges.get("*")):
                if child is not None and _fits(child.label, segments, place):
                    waiting.append((child, place + len(child.label)))


class TopicIndex(_Tree[T]):
    """One thing (never ``None``) under each topic."""

    def put(self, topic: str, thing: T) -> None:
        """Put a thing under a topic, in place of what stood there."""
        self._make(topic.split("/")).here = thing

    def remove(self, topic: str) -> None:
        """Remove a topic and what stands under it; nothing happens if it is not here."""
        if (nodes := self._down(topic.split("/"))) is not None:
            nodes[-1].here = None
            self._prune(nodes)

    def chosen(self, selectors: Iterable[Selector], most_visits: int) -> list[T] | None:
        """What stands under the topics that any of the selectors choose, each once, if so many visits find them all."""
        found: dict[T, None] = {}
        left = most_visits
        for selector in selectors:
            segments, deep = _path(selector)
            if selector.exact:
                nodes = self._down(segments)
                if nodes is not None and nodes[-1].here is not None:
                    found[nodes[-1].here] = None
                left -= 1
                continue
            waiting = [(self._root, 0)]
            while waiting:
                node, place = waiting.pop()
                if node.here is not None and (place > len(segments) if deep else place == len(segments)):
                    found[node.here] = None
                segment = segments[place] if place < len(segments) else "*" if deep else None
                if segment == "*":
                    left -= len(node.edges)
                    if left < 0:
                        return None
                    children = list(node.edges.values())
                else:
                    child = None if segment is None else node.edges.get(segment)
                    children = [] if child is None else [child]
                    left -= 1
                for child in children:
                    if _is_under(child.label, segments, place, deep):
                        if place == 0 and child.label[0] == PRIVATE:
                            if child.here is not None and len(child.label) == 1 and len(segments) == (not deep):
                                found[child.here] = None
                        else:
                            waiting.append((child, place + len(child.label)))
            if left < 0:
                return None
        return list(found)


class Selection(tuple[Selector, ...]):
    """Selectors of one reader, with an index of them that is made when it is first needed."""

    @classmethod
    def of(cls, selectors: Iterable[Selector]) -> Self:
        """The same object, if it is a selection already."""
        return selectors if isinstance(selectors, cls) else cls(selectors)

    @cached_property
    def exact(self) -> bool:
        """Whether each names one whole topic."""
        return all(selector.exact for selector in self)

    @cached_property
    def by_segments(self) -> SelectorIndex[Selector]:
        """The selectors by their segments."""
        index: SelectorIndex[Selector] = SelectorIndex()
        for selector in self:
            index.put(selector, selector)
        return index

    def chooses(self, topic: str) -> bool:
        """Whether any of them chooses a topic."""
        return self.by_segments.chooses(topic)


def without_contained(selectors: Iterable[Selector]) -> Iterator[list[Selector]]:
    """The selectors that no other of them contains, each once; they choose what all of them choose.

    One with fewer names stands before what it may contain, so each is looked up once, in those given so far. They are
    given in lists, for each of which at most :data:`STEP` are looked up, so that others may have their turn between.
    """
    given: SelectorIndex[Selector] = SelectorIndex()
    broadest_first = sorted(set(selectors), key=_breadth)
    for begin in range(0, len(broadest_first), STEP):
        fresh = []
        for selector in broadest_first[begin : begin + STEP]:
            if next(given.containing(selector), None) is None:
                given.put(selector, selector)
                fresh.append(selector)
        yield fresh


def _breadth(selector: Selector) -> tuple[bool, int, bool, int, str]:
    segments = selector.text.split("/")
    names = sum(segment not in ("*", "**") for segment in segments)
    return selector.exact, names, segments[-1] != "**", len(segments), selector.text


def _path(selector: Selector) -> tuple[list[str], bool]:
    """The segments before a last ``**``, and whether there is one."""
    segments = selector.text.split("/")
    deep = segments[-1] == "**"
    return segments[:-1] if deep else segments, deep


def _fits(label: Sequence[str], segments: Sequence[str], place: int) -> bool:
    """Whether a run of segments in the tree, the first of which is known to, chooses those at a place."""
    if len(label) == 1:
        return True
    if place + len(label) > len(segments):
        return False
    return all(label[step] in ("*", segments[place + step]) for step in range(1, len(label)))


def _is_under(label: Sequence[str], segments: Sequence[str], place: int, deep: bool) -> bool:
    """Whether a run of a topic's segments agrees with a selector's at a place, and with ``**`` behind them if deep."""
    if place + len(label) > len(segments) and not deep:
        return False
    wanted = segments[place : place + len(label)]
    return all(want in ("*", segment) for want, segment in zip(wanted, label, strict=False))


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many segments two runs have in common at their beginning."""
    shared = 0
    for mine, its in zip(one, other, strict=False):
        if mine != its:
            break
        shared += 1
    return shared
