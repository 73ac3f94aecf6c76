"""Training of the tokenizer: the paper's objective, optimiser and schedules (https://arxiv.org/abs/2102.12092, A.2)."""

import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vqvae.config import DiscreteVAEConfig
from vqvae.losses import RECONSTRUCTION_LOSSES, codebook_health, count_codes
from vqvae.model import DiscreteVAE
from vqvae.schedules import cosine


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
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr is {self.min_lr} and lr {self.lr}, expected 0 <= min_lr <= lr")

    def lr_at(self, step: int, run_steps: int) -> float:
        """Step size of update `step` in a run of `run_steps` updates."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * cosine(step, self.lr, self.min_lr, self.decay_steps or run_steps)


class TokenizerSystem(pl.LightningModule):
    """Trains a DiscreteVAE on batches {"images": (B, 3, H, W) in [0, 1]}.

    Logs `train/loss`, its parts, tau, beta, the step size and images/s; on held-out pictures `val/loss`, PSNR in dB and
    SSIM of the hard reconstruction, `val/relaxation_gap` (dB by which the relaxed reconstruction is better) and the
    codebook's health.

    Args:
        vae: what to train.
        optim: how.
        reconstruction: "logit_laplace" (the paper's) or "squared_error", which runs of minutes do better with.
    """

    def __init__(
        self,
        vae: DiscreteVAEConfig,
        optim: TokenizerOptim = TokenizerOptim(),
        reconstruction: str = "logit_laplace",
    ) -> None:
        super().__init__()
        if reconstruction not in RECONSTRUCTION_LOSSES:
            known = ", ".join(RECONSTRUCTION_LOSSES)
            raise ValueError(f"reconstruction is {reconstruction!r}, expected one of {known}")
        self.optim = optim
        self.reconstruction_loss = RECONSTRUCTION_LOSSES[reconstruction]
        # Convolutions in bf16 are about four times faster with this layout on CPUs that multiply in bf16.
        self.model = DiscreteVAE(vae).to(memory_format=torch.channels_last)
        self._val_counts = torch.zeros(vae.codebook_size, dtype=torch.int64)
        self._batch_started = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._batch_started = time.perf_counter()
        self.log_dict({f"train/{k}": v for k, v in self.model.quantizer.anneal(self.global_step).items()})

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        mu, ln_b, quantized = self.model(images)
        reconstruction = self.reconstruction_loss(images, mu, ln_b).mean()
        loss = reconstruction + quantized.loss
        counts = count_codes(quantized.indices, self.model.codebook_size)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/reconstruction", reconstruction)
        self.log("train/perplexity", codebook_health(counts).perplexity, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in quantized.parts.items()})
        return loss

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        seconds = time.perf_counter() - self._batch_started
        self.log("train/images_per_s", len(batch["images"]) / seconds)

    def on_validation_epoch_start(self) -> None:
        self._val_counts = torch.zeros(self.model.codebook_size, dtype=torch.int64, device=self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        z_e = self.model.encode_vectors(images)
        hard, relaxed = self.model.quantizer(z_e), self.model.quantizer.relax(z_e)
        mu, ln_b = self.model.decode_codes(hard.z_q)
        recon = self.model.reconstruction(mu)
        relaxed_recon = self.model.reconstruction(self.model.decode_codes(relaxed.z_q)[0])
        psnr = peak_signal_noise_ratio(recon, images, data_range=1.0)
        metrics = {
            "val/loss": self.reconstruction_loss(images, mu, ln_b).mean() + hard.loss,
            "val/psnr": psnr,
            "val/ssim": structural_similarity_index_measure(recon, images, data_range=1.0),
            "val/relaxation_gap": peak_signal_noise_ratio(relaxed_recon, images, data_range=1.0) - psnr,
        } | {f"val/{name}": value for name, value in hard.parts.items()}
        self.log_dict(metrics, batch_size=len(images), sync_dist=True)
        self._val_counts += count_codes(hard.indices, self.model.codebook_size)

    def on_validation_epoch_end(self) -> None:
        health = codebook_health(self.all_gather(self._val_counts).reshape(-1, self.model.codebook_size).sum(dim=0))
        self.log("val/codebook_perplexity", health.perplexity)
        self.log("val/codes_used", health.codes_used)
        self.log("val/codebook_usage", health.usage)

    def configure_optimizers(self) -> dict[str, Any]:
        optim = self.optim
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        run_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: optim.lr_at(step, run_steps) / optim.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
