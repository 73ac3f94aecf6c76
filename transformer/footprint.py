"""What memory a training step of a prior takes beside its weights, found out by running it on tensors without memory.

Fake tensors have shapes, dtypes and a device, also one that is not there, and no numbers. Running the model's own code
on them and following what comes into being and goes says what autograd keeps, whatever the model will look like.
Every layer keeps as much as the next, so one and two layers say it for all.

Two things cannot be run so. The attention's kernels: in their place stands an operator that keeps what they keep, which
is q, k, v, the result and the log-sum-exps, under every mask. And backward passes on a GPU that is not there: those are
run as on a CPU, for what they need in passing.

Shapes: B batch, T sequence, H heads, D head dim.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transformer.config import PriorConfig
from transformer.losses import summed_loss
from transformer.model import Prior


class Footprint(NamedTuple):
    """Bytes on one device; weights, gradients and the optimiser's are others' business."""

    kept: int  # from the forward to the backward pass
    casts: int  # of the blocks' weights in bf16, as long: autocast makes them, unless they are gathered in bf16
    passing: int  # beside these at most, for a moment: some logits, or what the backward pass of a block needs


def footprint(config: PriorConfig, batch_size: int, mixed: bool, device: str = "cuda") -> Footprint:
    """Of a step on `batch_size` pictures.

    Args:
        mixed: bf16 by autocast, else float32.
        device: "cuda" or "cpu", of which neither a kernel nor memory is needed.
    """
    one, two = (_step(replace(config, n_layer=layers), batch_size, mixed, device) for layers in (1, 2))
    backward = _step(replace(config, n_layer=1), batch_size, mixed, "cpu", backward=True)
    casts = config.n_layer * _casts_of_a_block(config) if mixed else 0
    kept = one.kept + (config.n_layer - 1) * (two.kept - one.kept)
    if not config.checkpoint_activations:
        kept -= casts  # with checkpoints, autocast forgets them
    return Footprint(kept, casts, max(one.passing, backward.passing))


class _Step(NamedTuple):
    kept: int
    passing: int


def _step(config: PriorConfig, batch_size: int, mixed: bool, device: str, backward: bool = False) -> _Step:
    """What the forward pass keeps and what it needs in passing; in the place of that, what the backward pass does."""
    with FakeTensorMode(), torch.device(device):
        prior = Prior(config).train()
        live = Live([*prior.parameters(), *prior.buffers(), *_gradients(prior)])
        with live:
            with _autocast(device, mixed):
                loss = _loss(prior, batch_size)
            kept, peak = live.now, live.peak
            if backward:
                live.peak = kept
                loss.backward()
                peak = live.peak
    return _Step(kept, peak - kept)


def _gradients(prior: Prior) -> list[Tensor]:
    for parameter in prior.parameters():
        parameter.grad = torch.empty_like(parameter)
    return [parameter.grad for parameter in prior.parameters()]


def _loss(prior: Prior, batch_size: int) -> Tensor:
    """`Prior.loss`, but for the attention; of the numbers in it nothing is true."""
    text_len = prior.config.text_len
    text = torch.zeros(batch_size, text_len - 1, dtype=torch.long)
    image = torch.zeros(batch_size, prior.config.image_len, dtype=torch.long)
    x = prior.run_blocks(prior.embedding(text, image), 0, lambda layer, q, k, v: _Attention.apply(q, k, v))
    heads = ((x[:, : text_len - 1], prior.text_head, text), (x[:, text_len - 1 : -1], prior.image_head, image))
    return sum(
        summed_loss(prior.norm(hidden).flatten(0, 1), head.weight, targets.flatten()) for hidden, head, targets in heads
    )


def _casts_of_a_block(config: PriorConfig) -> int:
    with torch.device("meta"):
        block = Prior(replace(config, n_layer=1)).blocks[0]
    return sum(module.weight.numel() * 2 for module in block.modules() if isinstance(module, nn.Linear))


@contextmanager
def _autocast(device: str, enabled: bool) -> Iterator[None]:
    """torch.autocast in bf16, which refuses devices that are not there."""
    if not enabled:
        yield
        return
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


class _Attention(torch.autograd.Function):
    """What attention's kernels keep, without what they compute: (B, H, T, D) each -> (B, H, T, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.save_for_backward(q, k, v, o, q.new_empty(q.shape[:3], dtype=torch.float32))
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class Live(TorchDispatchMode):
    """Bytes of the tensors that came into being under it: of those alive now, and the most there were at a time.

    Args:
        known: what does not count, views of it included.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size
