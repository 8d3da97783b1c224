"""Re-score a run with every new checkpoint that a trainer writes, whatever trainer that is.

There is no state beside the rounds themselves: a checkpoint is done when a sealed round names its sha256. So a watcher can
be killed and started again at any time.
"""

import json
import logging
import re
import shlex
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from manifests.errors import ConfigError, PairsanError, RunError
from manifests.layout import EMBEDDINGS, read_plan, round_folder, round_numbers, sealed_rounds
from manifests.reading import Manifest
from manifests.store import Store, open_store
from pipeline.config.catalogue import RunConfig
from pipeline.steps.plan import read_run

log = logging.getLogger("pairsan.watch")

LOCK: Final = "watch.lock"
_HEADER_LIMIT: Final = 100 << 20
_NAMED: Final = 5


@dataclass(frozen=True)
class Watch:
    """What `pairsan watch` does.

    Attributes:
        run: Run folder.
        pattern: Glob of checkpoint files on the local disk.
        config: Settings for rescoring; the checkpoint in it is replaced.
        rescore: Makes a sealed round of a run with some settings.
        every_s: Seconds between two looks.
        settle_s: A file that changed less than this ago may still be written.
        keep_embeddings: Embeddings of all but the newest so many rounds are deleted; None keeps all.
        on_sealed: Command that is called with the path of each newly sealed round.
    """

    run: str
    pattern: str
    config: RunConfig
    rescore: Callable[[str, RunConfig], Manifest]
    every_s: float = 60.0
    settle_s: float = 2.0
    keep_embeddings: int | None = None
    on_sealed: str | None = None

    def once(self) -> int:
        """Re-score with every checkpoint that is complete and new, in order, and return how many there were.

        Raises:
            RunError: Some failed; the others were re-scored all the same.
        """
        run, num_done, failed = open_store(self.run), 0, []
        for path in self._new(run):
            model = self.config.model.model_copy(update={"checkpoint": str(path), "pretrained": None})
            try:
                log.info("re-scoring with %s", path)
                manifest = self.rescore(self.run, self.config.model_copy(update={"model": model}))
                num_done += 1
                prune_embeddings(run, self.keep_embeddings)
                self._call(manifest)
            except PairsanError as error:  # one bad checkpoint must not keep the later ones waiting
                failed.append(f"{path}: {type(error).__name__}: {error}")
            except FileNotFoundError as error:  # a trainer that keeps its newest few deletes the others
                if Path(error.filename or "") != path:
                    raise
                failed.append(f"{path}: it was deleted before it was read; the rounds stay as they are")
        if failed:
            raise RunError(f"{num_done} checkpoints re-scored, {len(failed)} failed:\n  " + "\n  ".join(failed))
        return num_done

    def forever(self) -> None:
        """Look until interrupted; a checkpoint that fails is tried again at the next look, while no later one has a round."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        told = ""
        while True:
            try:
                self.once()
            except PairsanError as error:
                log.error("%s: %s", type(error).__name__, error)
            if told != (told := self.waits_for()):  # again only where it changes
                log.info("%s", told)
            time.sleep(self.every_s)

    def waits_for(self) -> str:
        """Return what would be taken next, how many checkpoints have their round, and which files are passed over and why."""
        ready, others = _looked_at(self.pattern, self.settle_s)
        scored = scored_checkpoints(open_store(self.run))
        num = sum(_sha256(path) in scored for path in ready)
        found = [
            f"waiting for a new file that matches {self.pattern}; {num} of {len(ready) + len(others)} there have their round"
        ]
        found += [f"{path.name}: {why}" for path, why in sorted(others.items())[:_NAMED]]
        more = len(others) - _NAMED
        return "; ".join([*found, f"and {more} more"] if more > 0 else found)

    def _new(self, run: Store) -> list[Path]:
        """Return the checkpoints behind the newest one that has a sealed round.

        One that comes later than its successor is passed over: its round would be the newest, and older weights in force.
        """
        files, scored = checkpoints(self.pattern, self.settle_s), scored_checkpoints(run)
        known = [_sha256(path) in scored for path in files]
        newest = max((place for place, is_known in enumerate(known) if is_known), default=-1)
        late = [path for path, is_known in zip(files[:newest], known, strict=False) if not is_known]
        if late:
            more = f" and {len(late) - 1} more" if len(late) > 1 else ""
            log.warning("%s%s: passed over, as %s is newer and has a sealed round", late[0], more, files[newest])
        return files[newest + 1 :]

    def _call(self, manifest: Manifest) -> None:
        """Call the trainer back, without a shell, with the path of the round as its last argument."""
        if self.on_sealed is None:
            return
        command = [*shlex.split(self.on_sealed), manifest.run.path(round_folder(manifest.number))]
        done = subprocess.run(command, check=False)  # the user's own command
        if done.returncode:
            raise RunError(
                f"round {manifest.number} is sealed, but --on-sealed ended with {done.returncode}: {shlex.join(command)}"
            )


def checkpoints(pattern: str, settle_s: float) -> list[Path]:
    """Return the complete checkpoint files that match, oldest first, `epoch_2` before `epoch_10`.

    Raises:
        ConfigError: The pattern names a URI.
    """
    return _looked_at(pattern, settle_s)[0]


def _looked_at(pattern: str, settle_s: float) -> tuple[list[Path], dict[Path, str]]:
    """Return the complete checkpoint files that match, in order, and why each other match is none."""
    if "://" in pattern:
        raise ConfigError(f"--checkpoints looks at local or mounted paths, not at {pattern!r}")
    found = [Path(name) for name in glob(pattern, recursive=True)]  # noqa: PTH207  # Path.glob takes no absolute pattern
    changed = {path: _changed_at(path) for path in found}
    # by a writer's clock that is ahead of ours a file may stay "new" for hours, so the difference counts, not the age
    ready, others = list[Path](), dict[Path, str]()
    for path, when in changed.items():
        if when is None:
            others[path] = "is no file"
        elif abs(time.time() - when) < settle_s:
            others[path] = f"changed less than {settle_s:g} s ago"
        elif not is_complete(path):
            others[path] = "is not whole, or no checkpoint"
        else:
            ready.append(path)
    return sorted(ready, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], changed[path], str(path))), others


def _changed_at(path: Path) -> float | None:
    """Return when a file was changed last, in seconds; None for what is no file, or was deleted a moment ago."""
    try:
        return path.stat().st_mtime if path.is_file() else None
    except OSError:
        return None


def is_complete(path: Path) -> bool:
    """Return whether a checkpoint file is whole, by its structure: torch's zip has its end, safetensors all its bytes."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size)) if 0 < size <= _HEADER_LIMIT else {}
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(ends) and path.stat().st_size == 8 + size + max(ends)
        return zipfile.is_zipfile(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def scored_checkpoints(run: Store) -> set[str]:
    """Return the sha256 of every checkpoint file that a sealed round was scored with."""
    return {read_plan(run, number)["scores"]["model"]["file_sha256"] for number in sealed_rounds(run)}


def prune_embeddings(run: Store, keep: int | None) -> None:
    """Delete the embeddings of all but the newest `keep` rounds that have any; labels and seals stay."""
    if keep is None:
        return
    folders = [f"{round_folder(number)}/{EMBEDDINGS}" for number in round_numbers(run)]
    having = [folder for folder in folders if run.exists(folder)]
    for folder in having[: max(0, len(having) - keep)]:
        run.fs.delete_dir(run.path(folder))


@contextmanager
def lock(run: str) -> Iterator[None]:
    """Hold the watcher's lock of a run; the system frees it when its holder dies, however that happens.

    Raises:
        RunError: Another watcher holds it, or there is no run.
    """
    store = open_store(run)
    if not store.is_local:
        raise ConfigError(f"watch needs the run on a local or mounted path, not {run!r}; use `pairsan rescore` on a schedule")
    read_run(store)  # refuses what is no run folder
    path = store.path(LOCK)
    try:
        with FileLock(path, blocking=False):
            yield
    except Timeout:
        raise RunError(f"another watcher holds {path}; stop that one first") from None


def _sha256(path: Path) -> str | None:
    """Return the digest of a checkpoint file; None where it was deleted meanwhile."""
    from stages.score.models.weights import file_sha256  # imports torch

    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None
