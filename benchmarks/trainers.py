"""What benchmarks/training.py times: steps of ours and of others on pictures' tokens after full captions.

A step is forward, backward and a fused AdamW over all weights, for all alike; in bfloat16 the weights stay in float32
and the step runs under autocast. FLOPs are the matrix products that a model asks for: of attention the pairs that its
mask lets through, of heads the positions with a target (transformer/flops.py). Those of DALLE-pytorch are what it
computes, masked pairs too, counted by PyTorch.

Shapes: B batch, T sequence, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.prior_contestants import Batch, Sizes, dalle_text, make_dalle, make_llama, make_ours
from benchmarks.samplers import PEER_DTYPES
from transformer.flops import TRAINING, forward_flops
from transformer.model import Prior

LR = 3e-4


@dataclass(frozen=True, kw_only=True)
class Case:
    sizes: Sizes
    batch: int
    dtype: str
    device: str

    def inputs(self) -> Batch:
        return Batch.random(self.sizes, self.batch, self.device)

    def autocast(self) -> torch.autocast:
        half = self.dtype != "float32"
        return torch.autocast(self.device.partition(":")[0], PEER_DTYPES[self.dtype] if half else None, enabled=half)


class Trainer:
    """A model and its optimiser; `step` is what is timed."""

    def __init__(self, case: Case, model: nn.Module) -> None:
        self.case, self.batch = case, case.inputs()
        self.model = model.to(case.device).train()
        learning = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = AdamW(learning, lr=LR, fused=True)

    def loss(self) -> Tensor:
        raise NotImplementedError  # each contestant has its own

    def flops(self) -> float:
        """Of a step, forwards and backwards."""
        raise NotImplementedError  # each contestant has its own

    def step(self) -> Tensor:
        """Returns the loss before it."""
        with self.case.autocast():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Ours(Trainer):
    def __init__(self, case: Case, compiled: bool) -> None:
        super().__init__(case, make_ours(case.sizes))
        self.prior_loss = torch.compile(Prior.loss) if compiled else Prior.loss  # as PriorSystem has it

    def loss(self) -> Tensor:
        return self.prior_loss(self.model, *self.batch).total

    def flops(self) -> float:
        return TRAINING * self.case.batch * sum(forward_flops(self.case.sizes.config()))


class Llama(Trainer):
    """Hugging Face's, with the loss that it computes itself when it is given labels."""

    def __init__(self, case: Case, *, joint: bool, compiled: bool = False) -> None:
        """`joint`: one vocabulary for captions and pictures; else the codebook alone, which captions are taken into."""
        text, codes = case.sizes.text_vocab_size, case.sizes.codebook_size
        super().__init__(case, make_llama(case.sizes, text + codes if joint else codes))
        batch = self.batch
        caption = torch.cat([batch.text_tokens[:, :1], batch.text_tokens], dim=1)  # as long as ours with BOS
        picture = batch.image_tokens.flatten(1)
        self.ids = torch.cat([caption, picture + text] if joint else [caption % codes, picture], dim=1)  # (B, T)
        self.forward = torch.compile(self.model) if compiled else self.model

    def loss(self) -> Tensor:
        return self.forward(input_ids=self.ids, labels=self.ids, use_cache=False).loss

    def flops(self) -> float:
        size, positions = self.ids.shape
        layers = sum(m.weight.numel() for m in self.model.model.modules() if isinstance(m, nn.Linear))
        config = self.model.config
        pairs = config.num_hidden_layers * positions * (positions + 1) // 2
        head = 2 * (positions - 1) * self.model.lm_head.weight.numel()
        return TRAINING * size * (2 * positions * layers + 2 * pairs * 2 * config.hidden_size + head)


class DallePytorch(Trainer):
    def __init__(self, case: Case) -> None:
        super().__init__(case, make_dalle(case.sizes))
        self.text, self.image = dalle_text(self.batch), self.batch.image_tokens.flatten(1)

    def loss(self) -> Tensor:
        return self.model(self.text, self.image, return_loss=True)

    def flops(self) -> float:
        with FlopCounterMode(display=False) as counter:
            self.loss().backward()
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops()


OURS, OURS_COMPILED = "ours", "ours, compiled"
TRAINERS: Mapping[str, Callable[[Case], Trainer]] = {
    OURS: lambda case: Ours(case, compiled=False),
    OURS_COMPILED: lambda case: Ours(case, compiled=True),
    "Llama": lambda case: Llama(case, joint=True),
    "Llama, compiled": lambda case: Llama(case, joint=True, compiled=True),
    "Llama, codes alone": lambda case: Llama(case, joint=False),
    "DALLE-pytorch": DallePytorch,
}
"""By name; the word before the comma says whose they are."""
