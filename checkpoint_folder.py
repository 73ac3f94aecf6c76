"""The checkpoints of a run: `last.ckpt`, those before it as `step-NUMBER.ckpt`, which of them stay, and which is good.

A checkpoint is renamed at most twice and never rewritten, and each carries its own digest: at no moment is there a good
one that counts as damaged, or none where there was one.
"""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_files import DamagedCheckpoint, step_of, write_checkpoint
from whole_files import sync_folder

log = logging.getLogger(__name__)

LAST = "last.ckpt"
NUMBERED = re.compile(r"step-[0-9]+\.ckpt")
ASIDE = ".damaged"  # what is put behind the name of a checkpoint that is not to be gone on from


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When checkpoints are written, and which of them stay. Raises ValueError for values outside their ranges.

    Attributes:
        every_minutes: between two of them.
        every_steps: also after each multiple of so many updates; None: by the clock alone.
        keep_last: so many of the newest stay. With 1 there is none to go back to where that one is damaged.
        keep_every: of each so many updates, the first checkpoint stays for good; None: none does.
    """

    every_minutes: float = 10
    every_steps: int | None = None
    keep_last: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        if not self.every_minutes >= 0:
            raise ValueError(f"checkpoints.every_minutes is {self.every_minutes}, expected at least 0")
        for name in ("every_steps", "keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoints.{name} is {value}, expected at least 1")


class CheckpointFolder:
    """The checkpoints in `folder`, which one process at a time writes (locks.py).

    Attributes:
        written: whether `write` has made the last one; else it is that of an earlier process, and may be damaged.
    """

    def __init__(self, folder: Path, policy: CheckpointPolicy) -> None:
        self.folder, self.policy = folder, policy
        self.last = folder / LAST
        self.written = False
        self._damaged: list[Path] = []

    def newest_first(self) -> list[Path]:
        """Those that `write` named: copies under other names are somebody else's, and stay.

        Raises ValueError where one of these names is of no file (a folder, a pipe, a link that leads nowhere): none
        could be written there, or a read would wait for ever.
        """
        ours = [path for path in self.folder.glob("step-*.ckpt") if NUMBERED.fullmatch(path.name)]
        for path in (self.last, *ours):
            if os.path.lexists(path) and not path.is_file():
                raise ValueError(f"{path} is no file: expected a checkpoint, or nothing of that name")
        numbered = sorted(ours, key=_step_in_name, reverse=True)
        return [*([self.last] if self.last.is_file() else []), *numbered]

    @property
    def empty(self) -> bool:
        """Whether there is no checkpoint, not even one that was set aside."""
        return not self.newest_first() and not list(self.folder.glob(f"*{ASIDE}"))

    def newest_good(self, load: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint that `load` does not find damaged; each that it does is named in a warning.

        A run that still trains may rename and remove them meanwhile: then it looks again. Raises ValueError where there
        is none, and what else `load` raises.
        """
        problems, self._damaged = [], []
        for path in self.newest_first():
            try:
                checkpoint = load(path)
            except DamagedCheckpoint as error:
                problems.append(str(error))
                self._damaged.append(path)
                continue
            except (ValueError, OSError):
                if path.exists():
                    raise
                return self.newest_good(load)
            for problem in problems:
                log.warning("%s", problem)
            if problems:
                log.warning("going back to the one before: %s, step %s", path, checkpoint["global_step"])
            return path, checkpoint
        if problems:
            raise ValueError(
                "; ".join(problems) + f": none in {self.folder} is good. Without that folder a run begins anew"
            )
        raise ValueError(f"no checkpoint {self.last}")

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Makes it the last one. Raises OSError where that fails: those that were there then stay.

        What `newest_good` found damaged is set aside now, under a name that no run goes on from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{LAST}.part"
        write_checkpoint(checkpoint, part)
        try:
            self._number_last(checkpoint["global_step"])
            self._set_damaged_aside()
            part.replace(self.last)
        except BaseException:  # Ctrl-C too
            part.unlink(missing_ok=True)
            raise
        self.written = True
        sync_folder(self.folder)
        self._prune()

    def _set_damaged_aside(self) -> None:
        while self._damaged:
            path = self._damaged.pop()
            path.replace(path.with_name(f"{path.name}{ASIDE}"))

    def _number_last(self, next_step: int) -> None:
        """Gives the last one the name it has from now on; one of the same step is replaced, not kept beside it."""
        if not self.last.is_file() or self.last in self._damaged:
            return
        try:
            step = step_of(self.last)
        except DamagedCheckpoint as error:
            log.warning("%s", error)
            self._damaged.append(self.last)
            return
        if step != next_step:
            self.last.replace(self.folder / f"step-{step:07d}.ckpt")

    def _prune(self) -> None:
        numbered = self.newest_first()[1:]
        for path in set(numbered[self.policy.keep_last - 1 :]) - self._milestones(numbered):
            try:
                path.unlink()
            except OSError as error:  # the new one is there all the same
                log.warning("%s could not be removed: %s", path, error.strerror)

    def _milestones(self, numbered: list[Path]) -> set[Path]:
        """The first checkpoint of each `keep_every` updates."""
        if self.policy.keep_every is None:
            return set()
        return set({_step_in_name(path) // self.policy.keep_every: path for path in numbered}.values())


def _step_in_name(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
