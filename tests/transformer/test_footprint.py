import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from transformer.config import PriorConfig
from transformer.footprint import Live, footprint
from transformer.model import Prior

SIZES = {"text_len": 24, "grid_size": (18, 16), "codebook_size": 96, "text_vocab_size": 160}
SIZES |= {"n_layer": 4, "n_head": 4, "n_embd": 64, "conv_kernel": 5}
BLOCKS = pytest.mark.parametrize("block", ["paper", "modern"])
PRECISIONS = pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16"])
BATCH = 3


def make(**settings) -> Prior:
    torch.manual_seed(0)
    return Prior(PriorConfig(**SIZES | settings)).train()


def loss_of(prior: Prior, mixed: bool) -> Tensor:
    text_tokens = torch.randint(160, (BATCH, 23))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        return prior.loss(text_tokens, torch.randint(96, (BATCH, 18, 16))).total


def bytes_saved(prior: Prior, mixed: bool) -> int:
    """Of the tensors that autograd keeps of a real step, weights and their casts left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in [*prior.parameters(), *prior.buffers()]}
    shapes = {parameter.shape for parameter in prior.blocks.parameters()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and tensor.shape not in shapes:
            saved[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(prior, mixed)
        total = sum(storage.nbytes() for storage in saved.values())
        del loss
    return total


@BLOCKS
@PRECISIONS
def test_is_near_what_autograd_keeps_of_a_real_step(block, mixed):
    """To 10%: on a CPU, attention copies some of its inputs, which the kernels of a GPU take as they are."""
    prior = make(block=block)
    assert footprint(prior.config, BATCH, mixed, "cpu").kept == pytest.approx(bytes_saved(prior, mixed), rel=0.10)


@PRECISIONS
def test_with_checkpoints_little_more_than_each_blocks_input_is_kept(mixed):
    prior = make(checkpoint_activations=True)
    config = prior.config
    inputs = config.n_layer * BATCH * config.seq_len * config.n_embd * 4
    with Live([*prior.parameters(), *prior.buffers()]) as live:
        loss = loss_of(prior, mixed)
    assert loss.requires_grad
    found = footprint(config, BATCH, mixed, "cpu")
    assert found.kept == pytest.approx(live.now, rel=0.05)
    assert inputs < found.kept < 2 * inputs
    assert found.kept < footprint(make().config, BATCH, mixed, "cpu").kept / 4


@BLOCKS
@PRECISIONS
def test_the_peak_is_near_that_of_a_real_step(block, mixed):
    """To 15%, on a CPU: what attention's kernels need in passing is not in it."""
    prior = make(block=block)
    for parameter in prior.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Live([*prior.parameters(), *prior.buffers(), *(p.grad for p in prior.parameters())]) as live:
        loss_of(prior, mixed).backward()
    assert sum(footprint(prior.config, BATCH, mixed, "cpu")) == pytest.approx(live.peak, rel=0.15)


def test_casts_are_the_blocks_matrices_in_two_bytes():
    prior = make()
    matrices = sum(parameter.numel() for parameter in prior.blocks.parameters() if parameter.ndim == 2)
    assert footprint(prior.config, BATCH, True).casts == 2 * matrices
    assert footprint(prior.config, BATCH, False).casts == 0


@PRECISIONS
def test_a_gpu_that_is_not_there(mixed):
    """Keeps about as much as a CPU; q and k are normalised in float32 there, but nothing is copied."""
    config = make().config
    ours, cpu = (footprint(config, BATCH, mixed, device).kept for device in ("cuda", "cpu"))
    assert ours == pytest.approx(cpu, rel=0.2)
    assert footprint(config, 2 * BATCH, mixed).kept > 1.9 * ours


def test_autocast_is_left_as_it_was():
    footprint(make().config, 1, True)
    assert not torch.is_autocast_enabled("cuda")
    assert torch.get_autocast_dtype("cuda") == torch.float16


def test_live_bytes_by_hand():
    known = torch.zeros(100)
    with Live([known]) as live:
        view = known[10:].view(9, 10)
        one = view + 1  # 360 bytes
        two = one.t() * 2  # 360
        half = two[:3].to(torch.float64)  # 216
        assert (live.now, live.peak) == (936, 936)
        del one
        assert live.now == 576
        known.add_(1)
        del two, half
    assert (live.now, live.peak) == (0, 936)
