"""Locks hold between processes where `flock` works and where it doesn't; which disks other machines may write to."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from prism_cli.errors import CheckpointError
from prism_cli.runs import locks
from prism_cli.runs.disks import file_system, is_network
from prism_cli.runs.files import is_held, locked

# Holds a folder's lock until it is killed, on a disk without `flock`.
HOLDER = """
import errno, fcntl, sys, time
from pathlib import Path
def refuse(*_): raise OSError(int(sys.argv[2]), "not here")
fcntl.flock = refuse
from prism_cli.runs.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def refuse(*_):
    raise OSError(errno.ENOSYS, "not here")


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def without_flock(request, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def holder(folder, code):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_without_flock_a_folder_in_use_is_refused_and_one_of_a_killed_process_taken_over(tmp_path, without_flock):
    with holder(tmp_path, without_flock) as process:
        assert is_held(tmp_path)
        with pytest.raises(CheckpointError, match="in use by another process"), locked(tmp_path):
            pass
        process.kill()
    assert not is_held(tmp_path)
    with locked(tmp_path):
        assert is_held(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def owned_by(folder, **holder):
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0}
    (folder / ".lock.owner").write_text(json.dumps(mine | holder))


def test_a_process_that_was_given_a_dead_ones_number_does_not_hold_its_lock(tmp_path, without_flock):
    owned_by(tmp_path)
    with locked(tmp_path):
        pass


def test_the_lock_of_another_machine_is_never_taken_over(tmp_path, without_flock):
    owned_by(tmp_path, host="gpu07", pid=2**22 - 1)
    with pytest.raises(CheckpointError, match="in use"), locked(tmp_path):
        pass
    assert is_held(tmp_path)


def test_a_file_that_names_nobody_is_waited_for_and_then_taken_over(tmp_path, without_flock):
    owner = tmp_path / ".lock.owner"
    owner.write_text("")
    with pytest.raises(CheckpointError, match="in use"), locked(tmp_path):
        pass
    os.utime(owner, (time.time() - 3600,) * 2)
    with locked(tmp_path):
        pass


def test_of_many_that_find_a_dead_holder_one_takes_over(tmp_path, without_flock):
    owned_by(tmp_path)
    together, inside, most = threading.Barrier(8), [], []

    def enter():
        together.wait()
        try:
            with locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.05)
                inside.pop()
        except CheckpointError:
            pass

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most
    assert max(most) == 1


@pytest.mark.parametrize("flock", [True, False])
def test_who_waits_comes_after_the_holder(tmp_path, monkeypatch, flock):
    if not flock:
        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    order, holds = [], threading.Event()

    def second():
        holds.wait()
        with locks.held(tmp_path / "lock", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locks.held(tmp_path / "lock"):
        holds.set()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_other_failures_of_flock_are_told(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken disk"), locked(tmp_path):
        pass


def test_whether_a_disk_has_flock_is_found_without_writing(tmp_path, monkeypatch):
    assert locks.has_flock(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not locks.has_flock(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Disks ---------------------------------------------------------------------------------------------------------------

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 22 0:29 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw,lazystatfs
32 31 0:30 / /scratch/my\\040data rw shared:7 - fuse.juicefs JuiceFS:x rw
33 22 0:31 / /home rw - autofs systemd-1 rw
34 33 0:32 / /home rw - nfs4 server:/home rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/tmp/runs", "ext4", False),
        ("/scratch/me/runs", "lustre", True),
        ("/scratchpad", "ext4", False),
        ("/scratch/my data/x", "fuse.juicefs", True),
        ("/home/me", "nfs4", True),
    ],
)
def test_the_kind_of_disk_is_that_of_the_nearest_mount(tmp_path, path, kind, network):
    from pathlib import Path

    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert file_system(Path(path), tmp_path / "mountinfo") == kind
    assert is_network(kind) == network


def test_without_a_list_of_mounts_a_disk_counts_as_local(tmp_path):
    assert file_system(tmp_path, tmp_path / "none") is None
    assert not is_network(None)
