"""What goes wrong in training: updates that are left out (guard.py), and spikes of the loss (loss_spikes.py).

Each is told with the keys of its batch, in a line and in RUN/spikes.jsonl. What says so stays on the device and is read
every few updates, where loggers read their values: the host waits for the device no more often than before.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from callbacks.loss_spikes import LossSpikes, Usual
from callbacks.run_state import after_last_step
from guard import Check
from whole_files import append_lines

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_UNREAD = 50  # updates, also where loggers read more seldom or never
KEYS_SHOWN = 5


class Update(NamedTuple):
    """What is known of an update before the device is asked."""

    step: int  # counted from 1
    keys: list[str]  # of this device's batch, or of all that were added up
    keys_before: list[str]  # of the update before, which made the weights that this one began with
    checks: list[Check]

    @property
    def loss(self) -> Tensor:
        """(), of this device; with a discriminator the generator's."""
        return torch.stack([losses["loss"].float() for losses in self.checks[0].losses]).mean()


class Event(NamedTuple):
    """A spike, or a step that an optimiser did not make."""

    update: Update
    losses: list[float]  # of each device
    usual: Usual | None = None  # of a spike
    optimizer: int = 0  # whose step was left out,
    streak: int = 0  # which is this one's number in a row


class UpdateWatch(Callback):
    """Counts updates that are left out (`train/skipped`), ends the fit after too many in a row, and tells of these and
    of spikes of the loss, which is the mean of all devices'. All devices decide alike.

    It has to come before whatever writes checkpoints: the update that ends the fit writes none.

    Args:
        file: gets a line of JSON for each event: {"step", "kind": "left out" or "spike", then "first": what was not
            finite, or "loss", "usual", "spread"; "devices": of each {"device", "loss", "keys", "keys_before"}}.
        limit: updates in a row that an optimiser may leave out; so many end the fit by FloatingPointError, unless fp16
            is looking for its scale.

    Raises ValueError for a limit below 1.
    """

    NAME = "update_watch"  # in the checkpoint

    def __init__(self, file: Path, limit: int = 10) -> None:
        if limit < 1:
            raise ValueError(f"max_skipped is {limit}, expected at least 1")
        self.file, self.limit = file, limit
        self.skipped = 0
        self.spikes = LossSpikes()
        self.streaks = [0, 0]  # updates in a row that the optimiser has left out; there are two at most
        self.firsts = ["", ""]  # what began them
        self._failed: str | None = None
        self._unread: list[Update] = []
        self._step = 0
        self._keys: list[str] = []
        self._keys_before: list[str] = []
        self._told: set[bytes] = set()  # lines of a process that was killed after the checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self._told = set(self.file.read_bytes().splitlines()) if self._step and self.file.is_file() else set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._keys += batch.get("keys", [])
        if trainer.global_step == self._step:
            return  # gradients are being added up
        self._step = trainer.global_step
        self._unread.append(Update(self._step, self._keys, self._keys_before, pl_module.guard.checks))
        self._keys, self._keys_before = [], self._keys
        every = min(trainer.log_every_n_steps or MOST_UNREAD, MOST_UNREAD)
        if self._step % every == 0 or after_last_step(trainer) or trainer.should_stop:
            self._read(trainer, pl_module)
            pl_module.log("train/skipped", float(self.skipped))
            failed, self._failed = self._failed, None
            if failed is not None and not _rescaling(trainer):
                raise FloatingPointError(failed)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._read(trainer, pl_module)
        checkpoint[self.NAME] = {
            "skipped": self.skipped,
            "streaks": self.streaks,
            "firsts": self.firsts,
            "losses": self.spikes.losses,
            "spiking": self.spikes.spiking,
            "keys_before": _of_all_devices(trainer, self._keys_before),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if (state := checkpoint.get(self.NAME)) is None:
            return  # the first checkpoints did not have it
        self.skipped, self.streaks, self.firsts = state["skipped"], state["streaks"], state["firsts"]
        self.spikes.losses, self.spikes.spiking = state["losses"], state["spiking"]
        keys_before = state.get("keys_before", [])
        if len(keys_before) == trainer.world_size:  # else each device had others
            self._keys_before = keys_before[trainer.global_rank]

    def _read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        updates, self._unread = self._unread, []
        if not updates:
            return
        losses = pl_module.all_gather(torch.stack([update.loss for update in updates]))
        of_devices = losses.reshape(trainer.world_size, len(updates)).T.tolist()
        flags = iter(torch.stack([check.found_inf for update in updates for check in update.checks]).tolist())
        events = []
        for update, of_device in zip(updates, of_devices, strict=True):
            events += self._left_out(update, of_device, [next(flags) > 0 for _ in update.checks])
            mean = sum(of_device) / len(of_device)
            if math.isfinite(mean) and (usual := self.spikes.begins(mean)) is not None:
                events.append(Event(update, of_device, usual))
        if events:
            self._tell(trainer, pl_module, events)

    def _left_out(self, update: Update, losses: list[float], flags: list[bool]) -> list[Event]:
        for number, left_out in enumerate(flags):
            self.streaks[number] = self.streaks[number] + 1 if left_out else 0
        self.skipped += sum(flags)
        return [
            Event(update, losses, optimizer=number, streak=self.streaks[number])
            for number, left_out in enumerate(flags)
            if left_out
        ]

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule, events: list[Event]) -> None:
        """Devices tell each other their keys and names only here, as they all come here at the same time."""
        own = [_of_device(event) for event in events]
        of_devices = _of_all_devices(trainer, own)
        order = {name: number for number, (name, _) in enumerate(pl_module.named_parameters())}
        lines = []
        for event, *devices in zip(events, *of_devices, strict=True):
            first = _first(devices, order) if event.usual is None else ""
            line = self._note(event, first, _shown(devices))
            lines.append(json.dumps(_record(event, first, devices)).encode())
            if trainer.is_global_zero and line:
                log.warning("%s; all keys are in %s", line, self.file)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self._append([line for line in lines if line not in self._told])

    def _append(self, lines: list[bytes]) -> None:
        """What keeps it from that is said: this device alone would end, with the others waiting for it."""
        try:
            append_lines(self.file, b"".join(line + b"\n" for line in lines))
        except OSError as error:
            log.warning("%s could not be added to: %s", self.file, error)

    def _note(self, event: Event, first: str, keys: str) -> str:
        """What to say of it: nothing of a streak's further updates."""
        step = f"{event.update.step:,}"
        if event.usual is not None:
            loss, (usual, spread) = sum(event.losses) / len(event.losses), event.usual
            return f"step {step}: the loss is {loss:.4g}, usually {usual:.4g} within {spread:.2g}; batch: {keys}"
        said = f"step {step}: {first} is not finite"
        if event.streak == 1:
            self.firsts[event.optimizer] = f"{said}; batch: {keys}"
        if event.streak >= self.limit:
            self._failed = (
                f"{event.streak} updates in a row were left out by step {step}, where this was looked at; max_skipped "
                f"is {self.limit}. First, {self.firsts[event.optimizer]}. What helps: a smaller step size, or to leave "
                f"out what {self.file} names"
            )
        return f"{said}, the update is left out; batch: {keys}" if event.streak == 1 else ""


def _of_all_devices(trainer: pl.Trainer, own: T) -> list[T]:
    """To be asked by all at the same time."""
    found = [own] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(found, own)
    return found


def _rescaling(trainer: pl.Trainer) -> bool:
    """Whether fp16's scale can still fall, which it does at each update that is not finite."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() > 1


def _of_device(event: Event) -> dict[str, Any]:
    """What this device alone knows: its keys, and names of what was not finite."""
    update = event.update
    known: dict[str, Any] = {"keys": update.keys, "keys_before": update.keys_before, "terms": [], "gradients": []}
    if event.usual is None:
        check = update.checks[event.optimizer]
        terms = {name: None for losses in check.losses for name, term in losses.items() if not term.isfinite()}
        finite = check.norms.isfinite().tolist()
        known["terms"] = list(terms)
        known["gradients"] = [name for name, is_finite in zip(check.names, finite, strict=True) if not is_finite]
    return known


def _first(devices: list[dict[str, Any]], order: dict[str, int]) -> str:
    """What was not finite first: a term of the loss, else the gradient of the parameter that the way back through the
    network meets first, which is the last one in order."""
    for number, device in enumerate(devices):
        parts = [term for term in device["terms"] if term != "loss"] or device["terms"]
        if parts:
            return f"{parts[0]}{f' of device {number}' if len(devices) > 1 else ''}"
    names = {name for device in devices for name in device["gradients"]}
    if not names:
        return "the gradients' norm"
    others = f" (and of {len(names) - 1} more)" if len(names) > 1 else ""
    return f"the gradient of {max(names, key=order.__getitem__)}{others}"


def _shown(devices: list[dict[str, Any]]) -> str:
    keys = [key for device in devices for key in device["keys"]]
    return ", ".join(keys[:KEYS_SHOWN]) + (", ..." if len(keys) > KEYS_SHOWN else "")


def _record(event: Event, first: str, devices: list[dict[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {"step": event.update.step}
    if event.usual is None:
        record |= {"kind": "left out", "first": first}
    else:
        loss = sum(event.losses) / len(event.losses)
        record |= {"kind": "spike", "loss": loss, "usual": event.usual.loss, "spread": event.usual.spread}
    record["devices"] = [
        {"device": number, "loss": loss if math.isfinite(loss) else str(loss)}
        | {name: device[name] for name in ("keys", "keys_before")}
        for number, (device, loss) in enumerate(zip(devices, event.losses, strict=True))
    ]
    return record
