"""A journal stays within what is promised of disk and memory, whatever it is filled with."""

from __future__ import annotations

import pytest

from benchmarks import retention

SETTING = 64 * retention.MIB
"""The least for which it is promised."""

FAST = "a mebibyte each"


PROOF = [pytest.mark.proof, pytest.mark.timeout(600)]


@pytest.mark.parametrize("journal", ["memory", "sqlite"])
@pytest.mark.parametrize(
    "shape", [name if name == FAST else pytest.param(name, marks=PROOF) for name in retention.SHAPES]
)
def test_a_full_journal_takes_no_more_than_is_promised(journal: str, shape: str) -> None:
    """The file with its log, and the growth of resident memory: 1.5 times the setting each."""
    taken = retention.taken(journal, shape, SETTING)
    assert taken.counted <= SETTING
    assert taken.disk <= retention.PROMISED * SETTING
    assert taken.memory <= retention.PROMISED * SETTING
