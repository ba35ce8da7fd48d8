"""A file is whole, or it is refused and the one before it is read."""

from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_magd.files import previous, read_file, write_file


def put(file: Path, content: bytes) -> None:
    write_file(file, lambda stream: stream.write(content))


def get(file: Path) -> bytes | None:
    return read_file(file, lambda stream: stream.read())


def test_the_newest_content_is_read_and_the_one_before_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "file"
    assert get(file) is None
    for content in (b"first", b"second", b"third"):
        put(file, content)
        assert get(file) == content
    assert get(previous(file)) == b"second"
    assert {each.name for each in file.parent.iterdir()} == {"file", "file.previous"}


@settings(max_examples=50, deadline=None)
@given(content=st.binary(min_size=1, max_size=200), place=st.integers(0, 10_000))
def test_no_damaged_byte_and_no_missing_end_goes_unnoticed(
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


def test_a_process_killed_between_two_moves_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    put(file, b"before")
    file.rename(previous(file))
    assert get(file) == b"before"


def test_an_interrupted_writing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def fail(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    file = tmp_path / "file"
    put(file, b"before")
    with pytest.raises(KeyboardInterrupt):
        write_file(file, fail)
    assert get(file) == b"before"


def test_what_the_reader_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    def refuse(stream: BinaryIO) -> None:
        raise ValueError("it is of another run")

    put(tmp_path / "file", b"content")
    with pytest.warns(UserWarning, match="file is not used: it is of another run"):
        assert read_file(tmp_path / "file", refuse) is None
