"""What the processor of a benchmark can do."""

from __future__ import annotations

import torch


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))
