"""Room on the disk, had before it is needed.

Removing takes room, too, in SQLite's log: a journal that filled its disk could never again remove what has grown too
old, and could not even be opened. So its file does not grow into the last of the disk.
"""

from __future__ import annotations

import os
from pathlib import Path

HEADROOM_BYTES, SHARE = 8 * 1024 * 1024, 8
"""So much is left of a disk, or one part in so many of a small one."""

LOG_BYTES, LOG_SHARE = 5 * 1024 * 1024, 4
"""So large the log may become, which SQLite writes anew when it has four mebibytes; it is less on a small disk, too."""


def largest(path: str) -> int:
    """How many bytes a database may have, so that its log has room, and something is left."""
    disk = os.statvfs(path)
    whole, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    file, log = Path(path), Path(f"{path}-wal")
    headroom = min(HEADROOM_BYTES, whole // SHARE)
    for_log = min(LOG_BYTES, whole // LOG_SHARE) - (log.stat().st_size if log.exists() else 0)
    return max(0, file.stat().st_size + free - headroom - max(0, for_log))


def allocate(file: int, size: int) -> bool:
    """Have room for so many bytes of an open file, unless they are too much of what is free; whether there is."""
    disk = os.fstatvfs(file)
    if size * SHARE > disk.f_bavail * disk.f_frsize:
        return False
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:
        return False
    return True
