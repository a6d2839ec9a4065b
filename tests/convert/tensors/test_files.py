"""Files that are read by any number of threads, a few open at a time."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mconv.convert.errors import SourceError
from mconv.convert.tensors import files
from mconv.convert.tensors.files import HandleCache, SourceFile, close_sources


def read(file: SourceFile, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    file.read_into(memoryview(buffer), offset)
    return bytes(buffer)


@pytest.fixture
def file(tmp_path: Path) -> SourceFile:
    (tmp_path / "a").write_bytes(bytes(range(256)))
    return SourceFile.at(tmp_path / "a")


def test_a_file_is_a_value(file: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pickle.loads(pickle.dumps(file)) == file
    monkeypatch.chdir(file.path.parent)
    assert SourceFile.at(Path("a")) == file
    assert hash(SourceFile.at(Path("a"))) == hash(file)


def test_ranges_are_read(file: SourceFile) -> None:
    assert read(file, 10, 3) == bytes((10, 11, 12))
    with pytest.raises(SourceError, match="a: the file ends at byte 256, inside a tensor"):
        read(file, 250, 10)


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(256))


def grow(path: Path) -> None:
    path.write_bytes(bytes(257))


def replace(path: Path) -> None:
    (path.parent / "b").write_bytes(bytes(256))
    (path.parent / "b").rename(path)


@pytest.mark.parametrize("change", [overwrite, grow, replace])
def test_another_file_in_its_place_is_an_error(change: Callable[[Path], None], file: SourceFile) -> None:
    read(file, 0, 1)
    file.check_unchanged()
    os.utime(file.path, ns=(0, file.mtime_ns - 1))
    file = SourceFile.at(file.path)
    change(file.path)
    with pytest.raises(SourceError, match="a changed while it was read"):
        file.check_unchanged()
    close_sources()
    with pytest.raises(SourceError, match="a changed while it was read"):
        read(file, 0, 1)


def test_a_pipe_in_its_place_is_not_waited_for(file: SourceFile) -> None:
    file.path.unlink()
    os.mkfifo(file.path)
    with pytest.raises(SourceError, match="changed"):
        read(file, 0, 1)


def test_few_handles_are_open_and_none_that_is_used_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_OPEN", 3)
    paths = [tmp_path / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    opened: list[Path] = []

    def open_file(path: Path) -> int:
        opened.append(path)
        return os.open(path, os.O_RDONLY)

    cache = HandleCache(open_file)
    with cache.handle(paths[0]) as kept:
        for number, path in enumerate(paths):
            with cache.handle(path) as handle:
                assert os.pread(handle, 1, 0) == bytes([number])
                assert len(cache._handles) <= 3
        assert os.pread(kept, 1, 0) == b"\0"
    assert opened.count(paths[0]) == 1
    with cache.handle(paths[19]):
        assert opened.count(paths[19]) == 1

    def look(number: int) -> bytes:
        with cache.handle(paths[number % 20]) as handle:
            return os.pread(handle, 1, 0)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, range(400))) == [bytes([number % 20]) for number in range(400)]
    cache.close()
    assert cache._handles == {}
