"""Kinds of disk: whether other machines may write to the one a path lies on."""

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# File systems of the kernel that several machines mount at once.
NETWORK = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "wekafs",
    ]
)
# In user space nearly all are networks or object stores (GlusterFS, JuiceFS, sshfs, mounted buckets).
USER_SPACE = "fuse"


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of file system a path lies on (`ext4`, `lustre`); None where the machine doesn't say.

    Args:
        path: A file or folder; it need not exist yet.
        mounts: The kernel's list of mounts.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    whole, best = path.resolve(), (-1, "")
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(fields[4].replace("\\040", " "))
        # Of two mounts at one place the later one covers the other.
        if whole.is_relative_to(point) and len(point.parts) >= best[0]:
            best = len(point.parts), after.split()[0]
    return best[1] or None


def is_network(kind: str | None) -> bool:
    """Whether other machines may write to a file system of this kind."""
    return kind is not None and (kind in NETWORK or kind.partition(".")[0] == USER_SPACE)
