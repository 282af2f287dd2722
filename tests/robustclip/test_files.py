"""Writers that are disturbed, killed, or two at once: a name shows a whole file or none."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from robustclip.files import claimed, replacing, write_atomically, write_once


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old" * 1000)
    script = f"""
import os, signal
from pathlib import Path
from robustclip.files import write_atomically
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path({str(target)!r}), b"new" * 100_000)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == -9
    assert target.read_bytes() == b"old" * 1000


def test_of_several_writers_of_one_name_exactly_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "record"
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: write_once(target, str(number).encode() * 1000), range(8)))
    assert written.count(True) == 1
    assert target.read_bytes() == str(written.index(True)).encode() * 1000
    assert names(target.parent) == ["record"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"content")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "other")
    assert names(tmp_path) == ["folder"]


def test_two_writers_of_one_file_don_t_meet_and_the_later_wins(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "graph.onnx"
    with replacing(target) as slow:
        slow.write_bytes(b"slow, half")
        with replacing(target) as fast:
            fast.write_bytes(b"fast")
        assert target.read_bytes() == b"fast"
        slow.write_bytes(b"slow, whole")
    assert target.read_bytes() == b"slow, whole"
    assert names(target.parent) == ["graph.onnx"]


def test_a_file_gets_the_rights_that_the_user_s_mask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_of_all_who_claim_a_piece_of_work_exactly_one_gets_it_and_nothing_stays_behind(
    tmp_path: Path,
) -> None:
    target = tmp_path / "folder" / "cell"
    with (
        claimed(target, wait=False) as first,
        claimed(target, wait=False) as second,
        claimed(tmp_path / "other", wait=False) as other,
    ):
        assert (first, second, other) == (True, False, True)
    with claimed(target, wait=False) as again:
        assert again
    assert names(target.parent) == []


def test_whoever_waits_gets_its_turn_and_never_beside_another(tmp_path: Path) -> None:
    target, inside, most = tmp_path / "cell", list[int](), list[int]()

    def work(number: int) -> bool:
        with claimed(target, wait=True) as ours:
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)
        return ours

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert (len(most), max(most)) == (200, 1)


def test_a_claim_ends_with_the_process_that_had_it(tmp_path: Path) -> None:
    target = tmp_path / "cell"
    script = f"""
import time
from pathlib import Path
from robustclip.files import claimed
with claimed(Path({str(target)!r}), wait=False):
    print("mine", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        with claimed(target, wait=False) as ours:
            assert not ours
        holder.kill()
    with claimed(target, wait=False) as ours:
        assert ours
