"""A journal that fills its disk: it removes what has grown too old all the same, and can be opened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trio_sse.errors import JournalFull
from trio_sse.journal import Journal, disk, open_journal
from trio_sse.journal.writer import INDEX_BYTES
from trio_sse.record import Draft
from trio_sse.retention import Retention
from trio_sse.testing import WallClock, data_of, draft, read_all

from .test_journal_files import mounted

DISK = "16m"


def some(size: int) -> list[Draft]:
    """One event of this size, or several small ones."""
    return [draft("a", "x" * size)] * max(1, 20_000 // size)


async def fill(journal: Journal, size: int) -> int:
    """Append until there is no room; how many events there was room for."""
    for number in range(100_000):
        try:
            await journal.append(some(size))
        except JournalFull:
            return number * len(some(size))
    raise AssertionError("there is room for everything")


@pytest.mark.parametrize("size", [1_000, 20_000, 200_000])
async def test_what_is_too_old_is_removed_from_a_full_disk(tmp_path: Path, size: int) -> None:
    """Again and again: the last of the disk was left for it, and then there is room for more."""
    clock = WallClock()
    with mounted(tmp_path, "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs"):
        url = f"sqlite:{tmp_path / 'hub.db'}"
        async with open_journal(url, retention=Retention(events=1e9, seconds=60), clock=clock) as journal:
            for _ in range(3):
                assert await fill(journal, size) > 2_000_000 / size
                with pytest.raises(JournalFull):
                    await journal.append(some(size))
                clock.move(61)
                await journal.trim()
                assert journal.statistics().events == 0
                assert journal.unwritable is None
                await journal.append([draft("a", "room")])
                assert data_of(await read_all(journal, "a")) == ["room"]


async def test_a_journal_that_filled_its_disk_can_be_opened(tmp_path: Path) -> None:
    """With its history, and it is cleaned up and filled again."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs"):
        url = f"sqlite:{tmp_path / 'hub.db'}"
        async with open_journal(url) as journal:
            count = await fill(journal, 50_000)
        async with open_journal(url) as journal:
            assert len(await read_all(journal, "a")) == count
            await journal.trim()
            await fill(journal, 50_000)
            assert journal.unwritable is not None


async def test_there_is_room_at_once_when_somebody_makes_some(tmp_path: Path) -> None:
    """Whoever filled the disk."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs"):
        async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
            other = tmp_path / "other"
            other.write_bytes(bytes(shutil.disk_usage(tmp_path).free))
            with pytest.raises(JournalFull):
                await journal.append([draft("a", "x" * 100_000)])
            other.unlink()
            await journal.append([draft("a", "x" * 100_000)])


async def test_the_index_of_the_log_has_its_room_from_the_beginning(tmp_path: Path) -> None:
    """On a disk that is large enough for a log that needs it; or SQLite would say of an event that it is not kept."""
    path = tmp_path / "hub.db"
    async with open_journal(f"sqlite:{path}"):
        assert path.with_name("hub.db-shm").stat().st_size >= INDEX_BYTES


def test_a_small_disk_is_left_to_the_events(tmp_path: Path) -> None:
    """No room is had beforehand where that were much of what there is."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        file = tmp_path / "hub.db"
        file.write_bytes(bytes(1_000_000))
        assert 2_000_000 < disk.largest(str(file)) < 3_000_000
        with file.open("r+b") as opened:
            assert not disk.allocate(opened.fileno(), 1_000_000)
            assert disk.allocate(opened.fileno(), 100_000)
            assert not disk.allocate(opened.fileno(), 10_000_000)
