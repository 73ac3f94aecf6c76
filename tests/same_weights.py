"""A callback for runs on several devices, in processes that a test cannot look into."""

import pytorch_lightning as pl
import torch


class SameWeights(pl.Callback):
    """Ends the run with an error where devices hold different weights of whatever is trained or kept."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.world_size > 1
        for name, tensor in pl_module.state_dict().items():
            everywhere = pl_module.all_gather(tensor.float())
            assert torch.equal(everywhere[0].expand_as(everywhere), everywhere), f"{name} differs between devices"
        if trainer.is_global_zero:
            print(f"{len(pl_module.state_dict())} tensors are alike on {trainer.world_size} devices")
