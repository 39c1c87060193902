"""Locks on files between processes: `flock`, and on disks that have none a file that names who holds it."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

# Lustre without `-o flock`, some NFS and FUSE disks.
NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
POLL_SECONDS = 0.5  # between two looks at a lock that is waited for
# How long a holder may take from making its file to writing its name into it.
NAMING_SECONDS = 60.0
GUARD_SECONDS = 0.01  # pause while another process removes the file of one that has ended


class Holder(NamedTuple):
    """A process that holds a lock by a file.

    Attributes:
        host: Its machine.
        pid: Its number there.
        started: When it started, seconds since 1970: a number is given again after a process has ended.
    """

    host: str
    pid: int
    started: float

    @property
    def is_gone(self) -> bool:
        """Whether it was on this machine and has ended; of other machines nobody knows."""
        import psutil

        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock while the block runs.

    Args:
        path: The lock's file; it stays.
        wait: Wait for another process that holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is not set.
    """
    with open(path, "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            with _held_by_name(_owner_file(path), wait):
                yield
            return
        yield


def is_held(path: Path) -> bool:
    """Whether another process holds a lock now."""
    try:
        with open(path, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return _owner_file(path).exists() and not _is_stale(_owner_file(path))


def has_flock(folder: Path) -> bool:
    """Whether `flock` works on a folder's disk; writes nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_FLOCK
    finally:
        os.close(descriptor)
    return True


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


@contextmanager
def _held_by_name(owner: Path, wait: bool) -> Iterator[None]:
    """Holds a lock by a file that only one process can make; one whose maker has ended is taken over."""
    while not _made(owner):
        if _is_stale(owner):
            _remove_stale(owner)
        elif wait:
            time.sleep(POLL_SECONDS)
        else:
            raise BlockingIOError(errno.EWOULDBLOCK, f"{owner} is another process's")
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)


def _made(owner: Path) -> bool:
    import psutil

    try:
        descriptor = os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    me = Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time())
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(me._asdict(), file)
    return True


def _holder(owner: Path) -> Holder | None:
    """Who holds a lock; None while the file names nobody."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(owner.read_text(encoding="utf-8")))
    return None


def _is_stale(owner: Path) -> bool:
    """Whether the process that made a lock's file has ended, or ended before it could name itself in it."""
    holder = _holder(owner)
    if holder is not None:
        return holder.is_gone
    with suppress(FileNotFoundError):
        return time.time() - owner.stat().st_mtime > NAMING_SECONDS
    return False


def _remove_stale(owner: Path) -> None:
    """Removes the file of a process that has ended. One process at a time may: another would remove its successor's."""
    guard = owner.with_name(f"{owner.name}.removing")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        if _is_stale(guard):  # whoever removed was killed in doing so
            guard.unlink(missing_ok=True)
        time.sleep(GUARD_SECONDS)
        return
    try:
        if _is_stale(owner):
            owner.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)
