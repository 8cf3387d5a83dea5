"""The WebUI's normalisations, which autocast would do in fp32."""

from __future__ import annotations

import torch
from torch import nn

from lib_ziplora.hosts._a1111.guard import norms_in_own_dtype


def test_normalisations_keep_the_dtype_and_are_put_back():
    torch.manual_seed(0)
    norms = nn.ModuleList([nn.LayerNorm(8), nn.GroupNorm(2, 8)]).bfloat16()
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        wide = [norm(x) for norm in norms]
        with norms_in_own_dtype(norms):
            own = [norm(x) for norm in norms]
        again = [norm(x) for norm in norms]
    assert [y.dtype for y in own] == [torch.bfloat16] * 2
    assert all(torch.allclose(a.float(), b.float(), atol=0.02) for a, b in zip(own, wide, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, wide, strict=True))
    assert not any("forward" in norm.__dict__ for norm in norms)
