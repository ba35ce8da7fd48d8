"""A file is read whole, or it is refused and the previous file is read."""

import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from callbacks import largest_file
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_magd.runtime.atomic_files import previous, read_file, write_file


def put(file: Path, content: bytes) -> None:
    write_file(file, lambda stream: stream.write(content))


def get(file: Path) -> bytes | None:
    return read_file(file, lambda stream: stream.read())


def test_the_newest_content_is_read_and_the_previous_content_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "file"
    assert get(file) is None
    for content in (b"first", b"second", b"third"):
        put(file, content)
        assert get(file) == content
    assert get(previous(file)) == b"second"
    assert {each.name for each in file.parent.iterdir()} == {"file", "file.previous"}


@settings(max_examples=50, deadline=None)
@given(content=st.binary(min_size=1, max_size=200), place=st.integers(0, 10_000))
def test_a_file_with_a_damaged_byte_or_a_missing_end_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int
) -> None:
    file = tmp_path_factory.mktemp("files") / "file"
    put(file, b"before")
    put(file, content)
    whole = file.read_bytes()
    place %= len(whole)
    damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for broken in (damaged, whole[:place]):
        file.write_bytes(broken)
        with pytest.warns(UserWarning, match="file is not used: it is damaged"):
            assert get(file) == b"before"


def test_the_previous_file_is_read_where_a_process_was_killed_before_the_last_move(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    put(file, b"before")
    file.rename(previous(file))
    assert get(file) == b"before"


def test_a_file_stays_as_it_was_when_writing_is_interrupted(tmp_path: Path) -> None:
    def fail(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    file = tmp_path / "file"
    put(file, b"before")
    with pytest.raises(KeyboardInterrupt):
        write_file(file, fail)
    assert get(file) == b"before"


def test_a_file_stays_as_it_was_when_there_is_no_room_for_another(tmp_path: Path) -> None:
    file = tmp_path / "file"
    put(file, b"before")
    with largest_file(1000), pytest.raises(OSError, match=r"file cannot be written, .* Make room"):
        put(file, bytes(2000))
    assert get(file) == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_half_written_is_removed_after_an_hour(tmp_path: Path) -> None:
    ages = {".file." + "0" * 32: 2 * 3600, ".file." + "1" * 32: 60, ".file.more": 7200}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    put(tmp_path / "file", b"content")
    assert {each.name for each in tmp_path.iterdir()} == {"file", *list(ages)[1:]}


def test_a_file_that_the_reader_refuses_is_refused_with_the_readers_reason(tmp_path: Path) -> None:
    def refuse(stream: BinaryIO) -> None:
        raise ValueError("it is of another run")

    put(tmp_path / "file", b"content")
    with pytest.warns(UserWarning, match="file is not used: it is of another run"):
        assert read_file(tmp_path / "file", refuse) is None
