"""Files are old or new, never half, whoever writes them, and whatever kills the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dualtower.files import atomic_write, text_file_atomically, write_bytes_atomically, write_text_atomically


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.bin"
    with atomic_write(path) as partial:
        partial.write_bytes(b"old")
        assert not path.exists() and partial.parent == path.parent
    assert path.read_bytes() == b"old" and names(path.parent) == {"a.bin"}
    with pytest.raises(ValueError, match="half way"), atomic_write(path) as partial:
        partial.write_bytes(b"new")
        raise ValueError("half way")
    assert path.read_bytes() == b"old" and names(path.parent) == {"a.bin"}


@pytest.mark.parametrize("write", ["text", "bytes", "pieces"])
def test_a_full_disk_leaves_what_was_there(write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"

    def save(text: str) -> None:
        if write == "text":
            write_text_atomically(path, text)
        elif write == "bytes":
            write_bytes_atomically(path, text.encode())
        else:
            with text_file_atomically(path) as stream:
                stream.writelines(text)

    save("old é\n")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save("newer")
    assert path.read_bytes() == "old é\n".encode() and names(tmp_path) == {"a.txt"}


def test_what_killed_writers_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    (tmp_path / ".film.partial").write_text("a download of somebody else")
    killed = (
        "import os, pathlib, signal, sys; from dualtower.files import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "a.txt")], timeout=60)
    assert done.returncode == -signal.SIGKILL and len(names(tmp_path)) == 2
    with atomic_write(tmp_path / "b.txt") as partial:
        assert names(tmp_path) == {".film.partial", partial.name}  # the dead one's file is gone
        partial.write_text("b")
        write_text_atomically(tmp_path / "c.txt", "c")  # another writer does not take it for a dead one's
        assert partial.read_text() == "b"
    assert names(tmp_path) == {".film.partial", "b.txt", "c.txt"}


def test_many_writers_of_one_file_never_meet(tmp_path: Path) -> None:
    path, failed = tmp_path / "a.txt", []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_text_atomically(path, text * 5000)
                assert len(set(path.read_text())) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == {"a.txt"} and len(path.read_text()) == 5000
