"""The journal of a file that grows."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mconv.convert.engine.journal import Done, Entry, journal_path, read_journal, remove_journal, write_journal


def entry(count: int = 11, *done: int) -> Entry:
    jobs = Done(count)
    for job in done:
        jobs.add(job)
    return Entry("digest", jobs, 42)


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))))
def test_done_holds_what_was_added(case: tuple[int, set[int]]) -> None:
    count, added = case
    done = entry(count, *added).done
    assert {job for job in range(count) if job in done} == added
    assert len(done) == len(added)
    again = Done(count, done.to_bytes())
    assert {job for job in range(count) if job in again} == added


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = journal_path(tmp_path / "a.gguf.partial")
    assert path.name == "a.gguf.partial.journal"
    write_journal(path, entry(11, 0, 3, 10))
    found = read_journal(path)
    assert found is not None
    assert (found.digest, found.inode, found.changed_ns) == ("digest", 42, None)
    assert [job for job in range(11) if job in found.done] == [0, 3, 10]
    write_journal(path, Entry("digest", found.done, 42, changed_ns=7))
    again = read_journal(path)
    assert again is not None
    assert again == found or again.changed_ns == 7
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    remove_journal(tmp_path / "a.gguf.partial")
    assert list(tmp_path.iterdir()) == []
    assert read_journal(path) is None


def test_a_journal_that_is_cut_off_or_changed_is_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path, entry(11, 1, 2))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_journal(path) is None, length
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert read_journal(path) is None, place


def sealed(members: dict[str, object], bits: bytes) -> bytes:
    content = json.dumps(members).encode() + b"\n" + bits
    return content + zlib.crc32(content).to_bytes(4, "little")


GOOD = {"format": "mconv-journal-1", "plan": "digest", "jobs": 11, "inode": 42, "changed_ns": None}


@pytest.mark.parametrize(
    ("members", "bits"),
    [
        (GOOD, b"\0\x08"),  # job 11 of 11
        (GOOD, b"\0\0\0"),
        (GOOD, b"\0"),
        ({**GOOD, "jobs": -1}, b""),
        ({**GOOD, "jobs": True}, b"\0"),
        ({**GOOD, "jobs": 1 << 60}, b"\0\0"),
        ({**GOOD, "inode": "42"}, b"\0\0"),
        ({**GOOD, "plan": 5}, b"\0\0"),
        ({**GOOD, "format": "mconv-journal-2"}, b"\0\0"),
        ({"plan": "digest"}, b"\0\0"),
    ],
)
def test_a_journal_that_makes_no_sense_is_none(members: dict[str, object], bits: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(sealed(GOOD, b"\0\0"))
    assert read_journal(tmp_path / "journal") is not None
    (tmp_path / "journal").write_bytes(sealed(members, bits))
    assert read_journal(tmp_path / "journal") is None


def test_a_folder_in_its_place_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None
