"""INTERIM version, being replaced: masked SDPA."""
import torch
from kernels.patterns import attention_mask
def attention_structured(q, k, v, pattern, *, scale=None, prefix_lengths=None):
    p = torch.arange(pattern.seq_len, device=q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attention_mask(pattern, p, p, prefix_lengths), scale=scale)
