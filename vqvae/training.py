"""Training of the tokenizer: the paper's objective, optimiser and schedules (https://arxiv.org/abs/2102.12092, A.2).

With `adversarial`, the discriminator has an optimiser of its own and both are stepped by hand; everything that counts
steps counts the generator's.
"""

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from guard import Guard, Held
from vqvae.adversarial import AdversarialConfig, Adversary, Perceptual, PerceptualConfig
from vqvae.code_use import code_use, count_codes
from vqvae.config import DiscreteVAEConfig
from vqvae.discriminator import adaptive_weight
from vqvae.losses import RECONSTRUCTION_LOSSES
from vqvae.lpips import SMALLEST_SIDE
from vqvae.model import DiscreteVAE
from vqvae.optim import TokenizerOptim, as_fused, make_optimizer
from vqvae.seeding import seeded

log = logging.getLogger(__name__)


def _ssim(recon: Tensor, images: Tensor) -> Tensor:
    """Structural similarity in float32: its variances are small differences, of which bf16 leaves nothing."""
    with torch.autocast(images.device.type, enabled=False):
        return structural_similarity_index_measure(recon.float(), images.float(), data_range=1.0)


class TokenizerSystem(pl.LightningModule):
    """Trains a DiscreteVAE on batches {"images": (B, 3, H, W) in [0, 1]}.

    Logs `train/loss` and its parts, perplexity of the batch's codes, tau, beta, images/s and the step size `lr`; on
    held-out pictures `val/loss` and its parts, PSNR in dB (of the squared error over all of them) and SSIM of the hard
    reconstruction, `val/relaxation_gap` (dB by which the relaxed reconstruction is better) and the codebook's use.

    Args:
        vae: what to train.
        optim: how.
        reconstruction: "logit_laplace" (the paper's) or "squared_error", which runs of minutes do better with; "l1" or
            "l2" where the pixels are signed.
        seed: of the Gumbel noise and of the codes that restart, at least 0.
        perceptual: LPIPS beside the reconstruction, None: without (adversarial.py).
        adversarial: a discriminator beside both, None: without. In float32 or bfloat16; on several devices, with the
            strategy ddp_find_unused_parameters_true.
    """

    def __init__(
        self,
        vae: DiscreteVAEConfig,
        optim: TokenizerOptim = TokenizerOptim(),
        reconstruction: str = "logit_laplace",
        seed: int = 0,
        perceptual: PerceptualConfig | None = None,
        adversarial: AdversarialConfig | None = None,
    ) -> None:
        super().__init__()
        if reconstruction not in RECONSTRUCTION_LOSSES:
            known = ", ".join(RECONSTRUCTION_LOSSES)
            raise ValueError(f"reconstruction is {reconstruction!r}, expected one of {known}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected at least 0")
        if perceptual is not None and vae.image_size < SMALLEST_SIDE:
            raise ValueError(f"image_size is {vae.image_size}, the perceptual loss needs at least {SMALLEST_SIDE}")
        self.optim, self.seed = optim, seed
        pixels, self.reconstruction_loss = RECONSTRUCTION_LOSSES[reconstruction]
        if pixels != vae.pixels:
            raise ValueError(f"reconstruction is {reconstruction!r}, which needs pixels {pixels!r}, not {vae.pixels!r}")
        # Convolutions in bf16 are about four times faster with this layout on CPUs that multiply in bf16.
        self.model = DiscreteVAE(vae).to(memory_format=torch.channels_last)
        self.perceptual = None if perceptual is None else Perceptual(perceptual)
        self.adversary = None if adversarial is None else Adversary(adversarial)
        if self.adversary is not None and vae.image_size < (least := self.adversary.discriminator.smallest_side):
            raise ValueError(f"image_size is {vae.image_size}, the discriminator needs at least {least}")
        self.automatic_optimization = adversarial is None
        self.guard, self._held = Guard(), Held(())
        self._val_counts = torch.zeros(vae.codebook_size, dtype=torch.int64)
        self._psnr, self._relaxed_psnr = PeakSignalNoiseRatio(data_range=1.0), PeakSignalNoiseRatio(data_range=1.0)
        self._batch_ended = 0.0

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.model.quantizer.anneal(checkpoint["global_step"])  # validation of a checkpoint never gets to a train batch
        as_fused(checkpoint.get("optimizer_states", ()))

    def on_train_start(self) -> None:
        self._batch_ended = time.perf_counter()

    def on_validation_end(self) -> None:
        self._batch_ended = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({f"train/{k}": v for k, v in self.model.quantizer.anneal(self.global_step).items()})
        self.log("lr", self._generator_optimizer().param_groups[-1]["lr"])  # AdamW's
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.guard.begin()
            self._held = Held(self._moved_by_forward())

    def _generator_optimizer(self) -> LightningOptimizer:
        return self.optimizers() if self.adversary is None else self.optimizers()[0]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        images = batch["images"].contiguous(memory_format=torch.channels_last)
        with seeded(self.device, self.seed, self.global_step, batch_idx, self.global_rank):
            maps, quantized = self.model(images)
        pixels, parts = self._pixel_loss(images, maps)
        loss = pixels + quantized.loss
        counts = count_codes(quantized.indices, self.model.codebook_size)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in parts.items()})
        self.log("train/psnr", self._batch_psnr(images, maps))
        self.log("train/perplexity", code_use(counts).perplexity, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in quantized.parts.items()})
        parts |= quantized.parts
        if self.adversary is None:
            return self.guard.loss(loss, parts)
        self._step_by_hand(self.adversary, images, self.model.pixels.to_images(maps), pixels, loss, parts)
        return None

    def _moved_by_forward(self) -> list[Tensor]:
        """Running sums, and codes that restart, of a quantizer that has such."""
        quantizer = self.model.quantizer
        buffers = list(quantizer.buffers())
        return [*buffers, *quantizer.parameters()] if buffers else []

    def _pixel_loss(self, images: Tensor, maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the pictures are held to, and its parts to log."""
        reconstruction = self.reconstruction_loss(images, maps).mean()
        if self.perceptual is None:
            return reconstruction, {"reconstruction": reconstruction.detach()}
        distance = self.perceptual(images, self.model.pixels.to_images(maps))
        parts = {"reconstruction": reconstruction.detach(), "perceptual": distance.detach()}
        return reconstruction + self.perceptual.weight * distance, parts

    @torch.no_grad()
    def _batch_psnr(self, images: Tensor, maps: Tensor) -> Tensor:
        return -10 * (self.model.reconstruction(maps) - images.float()).square().mean().log10()

    def _step_by_hand(
        self,
        adversary: Adversary,
        images: Tensor,
        recon: Tensor,
        pixels: Tensor,
        loss: Tensor,
        parts: dict[str, Tensor],
    ) -> None:
        """One update of the generator, judged or not yet, and one of the discriminator, where it learns already."""
        config, step = adversary.config, self.global_step
        if weight := config.weight_at(step):
            judgement = adversary.judge(recon)
            last_weight = self.model.decoder.output_conv.weight
            adaptive = adaptive_weight(pixels, judgement, last_weight, config.max_adaptive_weight)
            loss = loss + weight * adaptive * judgement
            judged = {"adversarial": judgement, "adversarial_weight": weight * adaptive}
            self.log_dict({f"train/{name}": value for name, value in judged.items()})
            parts |= judged
        generator, discriminator = self.optimizers()
        self._update(generator, self.guard.loss(loss, parts), self._held)
        self.lr_schedulers().step()
        if config.trains_at(step):
            held = Held(adversary.buffers())
            loss, parts = adversary.loss(images, recon)
            # Past Lightning, which would count this as a step of the run.
            self._update(discriminator.optimizer, self.guard.loss(loss, parts), held)
            self.log_dict({f"train/{name}": value for name, value in parts.items()})

    def _update(self, optimizer: LightningOptimizer | Optimizer, loss: Tensor, held: Held) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self._leave_out(getattr(optimizer, "optimizer", optimizer), self.adversary.config.gradient_clip_val, held)
        optimizer.step()

    def _leave_out(self, optimizer: Optimizer, largest: float | None, held: Held) -> None:
        """Clips the gradients by norm. Where it is not finite, nothing of the update stays."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.guard.check(optimizer, [(names[parameter], parameter) for parameter in parameters], largest)
        held.put_back(self.guard.checks[-1].found_inf)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        by_value = gradient_clip_algorithm == "value"
        self._leave_out(optimizer, None if by_value else gradient_clip_val, self._held)
        if by_value and gradient_clip_val:
            nn.utils.clip_grad_value_(self.model.parameters(), gradient_clip_val)

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
        pixels, parts = self._pixel_loss(images, maps)
        metrics = {"val/loss": pixels + hard.loss, "val/ssim": _ssim(recon, images)}
        metrics |= {f"val/{name}": value for name, value in {**parts, **hard.parts}.items()}
        self.log_dict(metrics, batch_size=len(images), sync_dist=True)
        self._val_counts += count_codes(hard.indices, self.model.codebook_size)

    def on_validation_epoch_end(self) -> None:
        psnr = self._psnr.compute()
        self.log("val/psnr", psnr)
        self.log("val/relaxation_gap", self._relaxed_psnr.compute() - psnr)
        use = code_use(self.all_gather(self._val_counts).reshape(-1, self.model.codebook_size).sum(dim=0))
        self.log("val/codebook_perplexity", use.perplexity)
        self.log("val/codes_used", use.codes_used)
        self.log("val/codebook_usage", use.usage)

    def on_fit_start(self) -> None:
        if self.dtype != torch.float32:
            raise ValueError(
                f"a tokenizer trains in 32-true, bf16-mixed or 16-mixed, not with weights in {self.dtype}: averages of "
                "its codes are kept in float32"
            )
        if self.adversary is None:
            return
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError("adversarial training takes precision 32-true or bf16-mixed, not 16-mixed")
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError("adversarial training on several devices needs strategy ddp_find_unused_parameters_true")
        start_step = self.adversary.config.start_step
        if 0 < self.trainer.max_steps <= start_step:
            log.warning(
                "the discriminator never judges: it starts at step %s, the run ends at %s",
                f"{start_step:,}",
                f"{self.trainer.max_steps:,}",
            )

    def configure_optimizers(self) -> Any:
        optim = self.optim
        optimizer = make_optimizer(self.model, optim)
        run_steps = self.trainer.estimated_stepping_batches
        if optim.decay_steps is None and not math.isfinite(run_steps):
            raise ValueError("decay_steps is none and the run has no end: set it, max_steps or max_epochs")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: optim.lr_at(step, run_steps) / optim.lr)
        generator = {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}
        if self.adversary is None:
            return generator
        config = self.adversary.config
        parameters = self.adversary.discriminator.parameters()
        judges = torch.optim.Adam(parameters, lr=config.lr, betas=config.betas, fused=True)
        return generator, {"optimizer": judges}
