"""Which precision is quick on which device: bf16 where its processor multiplies in it, float32 elsewhere.

A processor without such instructions takes detours: with AVX2 alone, PyTorch 2.15 takes 60 to 85 times as long for a
product of bf16 matrices as for one of float32.
"""

import torch


def cpu_likes_bf16() -> bool:
    """Whether this processor multiplies in bf16 by instructions of its own (AMX, AVX512-BF16), not by detours.

    oneDNN's own question, `mkldnn._is_mkldnn_bf16_supported`, says yes on every AVX-512 processor, also where bf16 is
    emulated and slower than fp32. What is asked instead is private in PyTorch, so it may be gone one day: then no.
    """
    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(is_supported() for is_supported in asked if is_supported is not None)


def default_precision(accelerator: str) -> str:
    """Lightning's name of the precision to train in where none is asked for: bf16-mixed on devices that are good at it,
    else 32-true.

    Args:
        accelerator: as the Trainer takes it: "auto", "cpu", "gpu", "cuda", ...
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
        fast = on_cpu and cpu_likes_bf16()
    return "bf16-mixed" if fast else "32-true"


def product_dtype(device: torch.device) -> torch.dtype:
    """Of products that bf16 is exact enough for: bfloat16, but float32 on a CPU that is not good at it."""
    return torch.float32 if device.type == "cpu" and not cpu_likes_bf16() else torch.bfloat16
