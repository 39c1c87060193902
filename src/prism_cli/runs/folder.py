"""A run's folder: resolved recipe, manifest with lineage, metrics, checkpoints; opening one again continues it.

runs/<name>/<step>/
  run.json        manifest: stage, status, seed, versions, lineage, times
  recipe.yaml     the resolved recipe
  metrics.jsonl   one JSON object a logging step
  checkpoints/    checkpoint-N/, complete once complete.json stands in it
  model/          the final policy and processor
"""

import json
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prism_cli import processes
from prism_cli.errors import CheckpointError, Terminated
from prism_cli.runs.files import LOCK, locked, write_atomically
from prism_cli.runs.references import last_complete_checkpoint, read_manifest

RECORDED_PACKAGES = ("prism-cli", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "vllm", "deepspeed")


@dataclass
class Run:
    """One step's folder.

    Attributes:
        folder: Where it lives.
        manifest: What run.json holds.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the stage ran to its end."""
        return self.manifest["status"] == "finished"

    @property
    def model(self) -> Path:
        """Folder of the final policy and processor."""
        return self.folder / "model"

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; those a kill left half-written are deleted. Call it on every process."""
        return processes.from_main(lambda: last_complete_checkpoint(self.folder / "checkpoints"))

    def update(self, **changes: Any) -> None:
        """Changes the manifest, and on the main process the one on disk."""
        self.manifest.update(changes)
        if not processes.is_main():
            return
        write_atomically(self.folder / "run.json", json.dumps(self.manifest, indent=2))

    @contextmanager
    def working(self) -> Iterator["Run"]:
        """Holds the folder while the stage works and records how it ended. SIGTERM ends it like Ctrl-C.

        Raises:
            CheckpointError: another process works in this folder.
            PrismError: another process of this training ended.
        """
        with processes.failing_together(), _sigterm_interrupts(), self._held():
            started, before = time.monotonic(), self.manifest.get("seconds", 0.0)
            self.update(status="running")
            status = "failed"
            try:
                yield self
                processes.barrier()  # it is finished when it is on every process
                status = "finished"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                self.update(
                    status=status,
                    seconds=round(before + time.monotonic() - started, 1),
                    finished=_now() if status == "finished" else None,
                )

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The lock, held by the main process for all."""
        with ExitStack() as stack:
            processes.from_main(lambda: (stack.enter_context(locked(self.folder)), None)[1])
            yield


def tell_killed(folder: Path) -> None:
    """Records that a run failed whose processes were killed: they could not, or took it for an interrupt."""
    if not (folder / "run.json").is_file():
        return
    with suppress(CheckpointError), locked(folder):  # else somebody works in it
        run = Run(folder, read_manifest(folder))
        if not run.finished:
            run.update(status="failed")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def open_run(
    folder: Path,
    stage: str,
    resolved: Mapping[str, Any],
    resolved_text: str,
    differences: Callable[[dict, dict], list[str]],
    *,
    source: Mapping[str, Any] | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
) -> Run:
    """Opens a run folder: a new one, or the same one again to continue it.

    Args:
        folder: The step's folder.
        stage: sft, align, rl, eval or run.
        resolved: The resolved recipe as plain values; `resolved_text` is the same as YAML.
        differences: Names the keys in which two resolved recipes differ and that are part of a run's identity.
        source: Lineage: the run and checkpoint it starts from.
        fresh: Delete what is there and start over.
        command: The command line, for the record.

    Raises:
        CheckpointError: the folder holds something else, or a run of another recipe; or it can't be written.
    """
    manifest_path = folder / "run.json"
    try:
        if fresh and folder.exists():
            if not manifest_path.is_file() and any(folder.iterdir()):
                raise CheckpointError(
                    f"{folder} is not a run folder; --fresh will not delete it", "choose another --output"
                )
            with locked(folder):
                shutil.rmtree(folder)
        if manifest_path.is_file():
            run = _continue(folder, stage, resolved, differences, source)
        else:
            if folder.is_dir() and any(not p.name.startswith(LOCK) for p in folder.iterdir()):
                raise CheckpointError(f"{folder} holds files that are no run", "choose another --output")
            folder.mkdir(parents=True, exist_ok=True)
            run = Run(
                folder,
                {"stage": stage, "id": folder.name, "name": folder.parent.name or folder.name, "created": _now()},
            )
        with locked(folder):  # another process at work here keeps its recipe and manifest
            write_atomically(folder / "recipe.yaml", resolved_text)
            run.update(
                status=run.manifest.get("status", "running"),
                recipe=dict(resolved),
                seed=resolved.get("seed"),
                versions=versions(),
                command=list(command) or run.manifest.get("command", []),
                **{"from": None if source is None else dict(source)},
            )
    except OSError as error:
        raise CheckpointError(
            f"can't write the run folder {folder}: {error.strerror}", "choose another --output"
        ) from None
    return run


def _continue(
    folder: Path, stage: str, resolved: Mapping[str, Any], differences: Callable, source: Mapping[str, Any] | None
) -> Run:
    manifest = read_manifest(folder)
    if manifest["stage"] != stage:
        raise CheckpointError(
            f"{folder} is a run of `prism {manifest['stage']}`, not of `prism {stage}`", "choose another --output"
        )
    if changed := differences(manifest["recipe"], dict(resolved)):
        raise CheckpointError(
            f"{folder} is a run of another recipe:\n  " + "\n  ".join(changed),
            "choose another --output, or start over with --fresh",
        )
    if not _same_source(manifest.get("from"), source):
        raise CheckpointError(
            f"{folder} started from another state of {_sources(source)} than is there now",
            f"remove {folder} to do this step again, or choose another --output",
        )
    if manifest["recipe"] != dict(resolved):
        manifest["status"] = "interrupted"  # e.g. a larger max_steps: there is more to do
    return Run(folder, manifest)


def _same_source(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
    """Whether nothing it started from changed; runs may have come to it."""
    if old and new and "runs" in old and "runs" in new:
        return all(run in new["runs"] for run in old["runs"])
    return old == new


def _sources(source: Mapping[str, Any] | None) -> str:
    return ", ".join(run["run"] for run in (source or {}).get("runs", [source] if source else [])) or "its start"


def versions() -> dict[str, str]:
    """Python and the packages that decide a result; absent ones are left out."""
    packages = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return packages


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
