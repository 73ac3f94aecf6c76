"""Training of the tokenizer: the paper's objective, optimiser and schedules (https://arxiv.org/abs/2102.12092, A.2)."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from vqvae.config import DiscreteVAEConfig
from vqvae.losses import RECONSTRUCTION_LOSSES, codebook_health, count_codes
from vqvae.model import DiscreteVAE
from vqvae.schedules import cosine
from vqvae.seeding import seeded


@dataclass(frozen=True, kw_only=True)
class TokenizerOptim:
    """AdamW with a cosine step size from `lr` to `min_lr` over `decay_steps` updates (None: the whole run).

    The paper's values are the defaults; its batch is 512 and its run 3,000,000 updates long.
    """

    lr: float = 1e-4
    min_lr: float = 1.25e-6
    decay_steps: int | None = 1_200_000
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr is {self.min_lr} and lr {self.lr}, expected 0 <= min_lr <= lr")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps is {self.decay_steps}, expected at least 1, or none for the whole run")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected at least 0")

    def lr_at(self, step: int, run_steps: int) -> float:
        """Step size of update `step`, counted from 0, in a run of `run_steps` updates.

        The cosine runs from the first update on; over the first `warmup_steps` it is scaled up linearly.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * cosine(step, self.lr, self.min_lr, self.decay_steps or run_steps)


def _ssim(recon: Tensor, images: Tensor) -> Tensor:
    """Structural similarity in float32: its variances are small differences, of which bf16 leaves nothing."""
    with torch.autocast(images.device.type, enabled=False):
        return structural_similarity_index_measure(recon.float(), images.float(), data_range=1.0)


class TokenizerSystem(pl.LightningModule):
    """Trains a DiscreteVAE on batches {"images": (B, 3, H, W) in [0, 1]}.

    Logs `train/loss` and its parts, perplexity of the batch's codes, tau, beta, images/s and the step size `lr`; on
    held-out pictures `val/loss` and its parts, PSNR in dB (of the squared error over all of them) and SSIM of the hard
    reconstruction, `val/relaxation_gap` (dB by which the relaxed reconstruction is better) and the codebook's health.

    Args:
        vae: what to train.
        optim: how.
        reconstruction: "logit_laplace" (the paper's) or "squared_error", which runs of minutes do better with; "l1" or
            "l2" where the pixels are signed.
        seed: of the Gumbel noise and of the codes that restart, at least 0.
    """

    def __init__(
        self,
        vae: DiscreteVAEConfig,
        optim: TokenizerOptim = TokenizerOptim(),
        reconstruction: str = "logit_laplace",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if reconstruction not in RECONSTRUCTION_LOSSES:
            known = ", ".join(RECONSTRUCTION_LOSSES)
            raise ValueError(f"reconstruction is {reconstruction!r}, expected one of {known}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected at least 0")
        self.optim, self.seed = optim, seed
        pixels, self.reconstruction_loss = RECONSTRUCTION_LOSSES[reconstruction]
        if pixels != vae.pixels:
            raise ValueError(f"reconstruction is {reconstruction!r}, which needs pixels {pixels!r}, not {vae.pixels!r}")
        # Convolutions in bf16 are about four times faster with this layout on CPUs that multiply in bf16.
        self.model = DiscreteVAE(vae).to(memory_format=torch.channels_last)
        self._val_counts = torch.zeros(vae.codebook_size, dtype=torch.int64)
        self._psnr, self._relaxed_psnr = PeakSignalNoiseRatio(data_range=1.0), PeakSignalNoiseRatio(data_range=1.0)
        self._batch_ended = 0.0

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.model.quantizer.anneal(checkpoint["global_step"])  # validation of a checkpoint never gets to a train batch

    def on_train_start(self) -> None:
        self._batch_ended = time.perf_counter()

    def on_validation_end(self) -> None:
        self._batch_ended = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({f"train/{k}": v for k, v in self.model.quantizer.anneal(self.global_step).items()})
        self.log("lr", self.optimizers().param_groups[0]["lr"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        with seeded(self.device, self.seed, self.global_step, batch_idx, self.global_rank):
            maps, quantized = self.model(images)
        reconstruction = self.reconstruction_loss(images, maps).mean()
        loss = reconstruction + quantized.loss
        counts = count_codes(quantized.indices, self.model.codebook_size)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/reconstruction", reconstruction)
        self.log("train/perplexity", codebook_health(counts).perplexity, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in quantized.parts.items()})
        return loss

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        now = time.perf_counter()  # from end to end, so that waiting for data and for the device counts
        self.log("train/images_per_s", len(batch["images"]) * self.trainer.world_size / (now - self._batch_ended))
        self._batch_ended = now

    def on_validation_epoch_start(self) -> None:
        self._val_counts = torch.zeros(self.model.codebook_size, dtype=torch.int64, device=self.device)
        self._psnr.reset()
        self._relaxed_psnr.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        z_e = self.model.encode_vectors(images)
        with seeded(self.device, self.seed, batch_idx, self.global_rank):
            relaxed = self.model.quantizer.relax(z_e)
        hard = self.model.quantizer.harden(relaxed)
        maps = self.model.decoder(hard.z_q)
        recon = self.model.reconstruction(maps)
        self._psnr.update(recon, images)
        self._relaxed_psnr.update(self.model.reconstruction(self.model.decoder(relaxed.z_q)), images)
        reconstruction = self.reconstruction_loss(images, maps).mean()
        metrics = {
            "val/loss": reconstruction + hard.loss,
            "val/reconstruction": reconstruction,
            "val/ssim": _ssim(recon, images),
        } | {f"val/{name}": value for name, value in hard.parts.items()}
        self.log_dict(metrics, batch_size=len(images), sync_dist=True)
        self._val_counts += count_codes(hard.indices, self.model.codebook_size)

    def on_validation_epoch_end(self) -> None:
        psnr = self._psnr.compute()
        self.log("val/psnr", psnr)
        self.log("val/relaxation_gap", self._relaxed_psnr.compute() - psnr)
        health = codebook_health(self.all_gather(self._val_counts).reshape(-1, self.model.codebook_size).sum(dim=0))
        self.log("val/codebook_perplexity", health.perplexity)
        self.log("val/codes_used", health.codes_used)
        self.log("val/codebook_usage", health.usage)

    def configure_optimizers(self) -> dict[str, Any]:
        optim = self.optim
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        run_steps = self.trainer.estimated_stepping_batches
        if optim.decay_steps is None and not math.isfinite(run_steps):
            raise ValueError("decay_steps is none and the run has no end: set it, max_steps or max_epochs")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: optim.lr_at(step, run_steps) / optim.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
