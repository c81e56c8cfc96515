"""What this machine has to give to a load: file descriptors and ports."""

from __future__ import annotations

import resource
from pathlib import Path

from .publishing import PUBLISHERS
from .target import LoadError

SPARE_FILES = 64
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def make_room(clients: int, topics: int) -> None:
    """Allow this process as many descriptors as it will need.

    Raises:
      LoadError: there may not be so many, or not so many connections from one address to one server.
    """
    connections = clients + max(PUBLISHERS, topics)
    files = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and files > hard:
        raise LoadError(
            f"{clients:,} clients need {files:,} file descriptors, and at most {hard:,} are allowed: raise the hard "
            "limit (ulimit -Hn), or use fewer clients"
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files if hard == resource.RLIM_INFINITY else hard, hard))
    lowest, highest = map(int, PORT_RANGE.read_text().split())
    if connections > highest - lowest + 1:
        raise LoadError(
            f"{clients:,} clients need as many local ports, and there are {highest - lowest + 1:,}: widen "
            "net.ipv4.ip_local_port_range, or share them between several machines (one address has one set of ports)"
        )
