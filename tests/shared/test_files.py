import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import DgreidError
from shared.files import _host, atomic_path, make_folder, write_text


def test_a_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_an_exception_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("new")
        _ = 1 / 0
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_kill_9_inside_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    script = (
        "import os, signal, sys, pathlib\n"
        "from shared.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as t:\n"
        "    t.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    living = tmp_path / f".file.txt.{_host()}-{os.getppid()}.tmp"
    elsewhere = tmp_path / ".file.txt.another_machine-1.tmp"
    for leftover in (living, elsewhere):
        leftover.write_text("somebody else's")
    write_text(target, "newer")  # the next writer removes what the killed one left, and nothing else
    assert set(tmp_path.iterdir()) == {target, living, elsewhere}


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    for attempt in (lambda: make_folder(blocker / "x"), lambda: write_text(blocker / "x" / "y", "")):
        with pytest.raises(DgreidError, match="cannot write") as caught:
            attempt()
        assert str(blocker) in str(caught.value)
        assert "fix:" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DgreidError, match="cannot write"):
        write_text(tmp_path / "file.txt", "x")
