"""Delta weights of every family of adapters, as pure functions on one module's tensors.

The tensors come as ``parts``: a mapping from the part's name, as in ``keys.PARTS``, to the
tensor. Results are in fp32, without alpha. Each equals what the trainer that writes such files means; the WebUI 1.10.1
adds the same at strength 1, except where a function says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..lowrank import Factors

Parts = Mapping[str, Tensor]


def lora(parts: Parts) -> Tensor:
    """LoRA and LoCon: up @ down, or ``mid`` between them (Tucker), unscaled.

    Shapes: down (rank, in[, kh, kw]), up (out, rank[, 1, 1]), mid (rank, rank, kh, kw).
    """
    up, down = parts["up"].float().flatten(1), parts["down"].float()
    if "mid" in parts:
        return torch.einsum("nmkl,in,mj->ijkl", parts["mid"].float(), up, down.flatten(1))
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def loha(parts: Parts) -> Tensor:
    """LoHa (arXiv 2108.06098): (w1_a @ w1_b) * (w2_a @ w2_b), unscaled.

    Shapes: w_a (out, rank), w_b (rank, in) or, of a convolution, (rank, in * kh * kw); with
    t1 and t2 (rank, rank, kh, kw) instead w_a (rank, out), w_b (rank, in), and each half is
    sum_ij t[i, j] w_a[i, out] w_b[j, in] (Tucker).
    """
    (up1, down1), (up2, down2) = loha_halves(parts)
    product = (up1 @ down1.flatten(1)) * (up2 @ down2.flatten(1))
    columns = down1.shape[1:] if down1.ndim > down2.ndim else down2.shape[1:]
    return product.reshape(up1.shape[0], *columns)


def loha_halves(parts: Parts) -> tuple[Factors, Factors]:
    """The (up, down) of both halves of a LoHa: (out, rank) and (rank, in[, kh, kw])."""
    return _loha_half(parts, "1"), _loha_half(parts, "2")


def _loha_half(parts: Parts, which: str) -> Factors:
    a, b = parts[f"hada_w{which}_a"].float(), parts[f"hada_w{which}_b"].float()
    return _tucker(parts[f"hada_t{which}"].float(), a, b) if f"hada_t{which}" in parts else (a.flatten(1), b)


def lokr(parts: Parts) -> Tensor:
    """LoKr (LyCORIS, arXiv 2309.14859): the Kronecker product of two matrices, unscaled.

    Each matrix is whole or a product of two factors; the second may be a convolution's
    (.., .., kh, kw), whole or with a core t2 (Tucker), or flattened to (.., .. * kh * kw).
    """
    first, second = lokr_matrices(parts)
    product = torch.kron(first, second.flatten(1))
    return product.reshape(product.shape[0], first.shape[1] * second.shape[1], *second.shape[2:])


def lokr_matrices(parts: Parts) -> tuple[Tensor, Tensor]:
    """Both matrices of a LoKr: (a, c) and (b, d[, kh, kw]), delta weight (a * b, c * d[, kh, kw])."""
    whole = parts.get("lokr_w1")
    first = parts["lokr_w1_a"].float() @ parts["lokr_w1_b"].float() if whole is None else whole.float()
    if "lokr_w2" in parts:
        return first, parts["lokr_w2"].float()
    up, down = parts["lokr_w2_a"].float(), parts["lokr_w2_b"].float()
    if "lokr_t2" in parts:
        up, down = _tucker(parts["lokr_t2"].float(), up, down)
    return first, (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Factors:
    """sum_ij core[i, j, k, l] a[i, out] b[j, in] as (out, rank) and (rank, in, kh, kw)."""
    return a.T, torch.einsum("ijkl,jr->irkl", core, b)


def full(parts: Parts) -> Tensor:
    """A full difference. Its ``diff_b`` is added to the bias, which no delta weight holds."""
    return parts["diff"].float()


def norm(parts: Parts) -> Tensor:
    """The difference (features,) of a norm layer's weight; ``b_norm`` is that of its bias."""
    return parts["w_norm"].float()


def ia3(parts: Parts, weight: Tensor) -> Tensor:
    """(IA)3 (arXiv 2205.05638): the weight times one number for every output, or every input.

    Where the WebUI fails, on a convolution's outputs, this is LyCORIS's.
    """
    factors = parts["weight"].float().reshape(-1)
    axis = 1 if bool(parts["on_input"]) else 0
    return weight * factors.reshape(*(-1 if i == axis else 1 for i in range(weight.ndim)))


def glora(parts: Parts, weight: Tensor) -> Tensor:
    """GLoRA (arXiv 2306.07967): weight @ A + B, with A and B of low rank.

    Old files have a1 (rank, in), a2 (in, rank), b1 (rank, in), b2 (out, rank): A = a2 @ a1 and
    B = b2 @ b1. The WebUI takes only these, of linear layers, and leaves alpha out. Files of
    today's LyCORIS have the factors' names the other way round, A = a1 @ a2 and B = b1 @ b2, and
    alpha / rank in front of both; the WebUI fails on them, so they are taken as LyCORIS means them.
    """
    order = ("2", "1") if is_old_glora(parts) else ("1", "2")
    a_up, a_down = (parts[f"a{n}.weight"].float() for n in order)
    b_up, b_down = (parts[f"b{n}.weight"].float() for n in order)
    mixed = torch.einsum("oi...,ir,rj->oj...", weight, a_up.flatten(1), a_down.flatten(1))
    return mixed + (b_up.flatten(1) @ b_down.flatten(1)).reshape(weight.shape)


def is_old_glora(parts: Parts) -> bool:
    """Whether the factors have the names that the WebUI knows."""
    a1 = parts["a1.weight"]
    return a1.shape[0] <= a1.shape[1]


def oft(parts: Parts, weight: Tensor) -> Tensor:
    """OFT and BOFT (arXiv 2306.07280, 2311.06243): the weight's outputs rotated, minus the weight.

    ``oft_blocks`` (blocks, size, size) or, of BOFT, (stages, blocks, size, size) hold skew
    matrices whose Cayley transforms are the rotations; ``oft_diag``, of old files, the
    rotations themselves. alpha times outputs limits the norm of the skew matrices;
    ``rescale`` multiplies each output.
    """
    if "oft_blocks" in parts:
        blocks = _rotations(parts["oft_blocks"].float(), parts.get("alpha"), weight.shape[0])
    else:
        blocks = parts["oft_diag"].float()
    if blocks.ndim == 4:
        rotated = _butterfly(blocks, weight)
    else:
        groups = weight.reshape(blocks.shape[0], blocks.shape[-1], -1)
        rotated = torch.einsum("knm,kni->kmi", blocks, groups).reshape(weight.shape)
    if "rescale" in parts:
        rotated = rotated * parts["rescale"].float().reshape(-1, *[1] * (weight.ndim - 1))
    return rotated - weight


def _rotations(blocks: Tensor, alpha: Tensor | None, outputs: int) -> Tensor:
    if blocks.shape[-1:] != blocks.shape[-2:-1]:
        raise ValueError(f"rotations are square, not {list(blocks.shape[-2:])}")
    skew = blocks - blocks.transpose(-1, -2)
    limit = 0.0 if alpha is None else float(alpha) * outputs
    if limit != 0:
        length = skew.norm()
        skew = skew * ((length.clamp(max=limit) + 1e-8) / (length + 1e-8))
    eye = torch.eye(blocks.shape[-1], dtype=skew.dtype, device=skew.device)
    inverse: Tensor = torch.linalg.inv(eye - skew)
    return (eye + skew) @ inverse


def _butterfly(stages: Tensor, weight: Tensor) -> Tensor:
    """Stage i mixes outputs that lie 2^i * size / 2 apart."""
    size = stages.shape[-1]
    flat = weight.flatten(1)
    for i, blocks in enumerate(stages):
        stride = 2**i * (size // 2)
        shuffled = flat.reshape(-1, 2, stride, flat.shape[1]).transpose(1, 2)
        turned = blocks @ shuffled.reshape(-1, size, flat.shape[1])
        flat = turned.reshape(-1, stride, 2, flat.shape[1]).transpose(1, 2).reshape(flat.shape)
    return flat.reshape(weight.shape)


def decomposed(weight: Tensor, delta: Tensor, magnitude: Tensor, on_outputs: bool) -> Tensor:
    """DoRA (arXiv 2402.09353): the delta weight that gives weight + delta the learnt magnitudes.

    (weight + delta) * magnitude / length - weight, with the length of each output's row or of each input's column.
    The WebUI 1.10.1 divides by the columns' lengths in both cases; LyCORIS, PEFT, OneTrainer and ComfyUI do not.

    Args:
        weight: (out, in[, kh, kw]).
        delta: of the same shape.
        magnitude: one number for every output or for every input.
        on_outputs: which of the two (``magnitude_on_outputs``).
    """
    moved, axis = weight + delta, 0 if on_outputs else 1
    length = moved.transpose(0, axis).flatten(1).norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny)
    factors = magnitude.float().reshape(-1) / length
    result: Tensor = moved * factors.reshape(*(-1 if i == axis else 1 for i in range(weight.ndim))) - weight
    return result


def magnitude_on_outputs(magnitude: Sequence[int], weight: Sequence[int], peft: bool = False) -> bool:
    """Whether DoRA's magnitudes are one for every output, or one for every input.

    LyCORIS and OneTrainer write (out, 1[, 1, 1]) or (1, in[, 1, 1]), as they were told; PEFT and ai-toolkit (out,),
    and PEFT (1, out, 1, 1) of convolutions.

    Args:
        magnitude: shape of the magnitudes.
        weight: shape of the weight.
        peft: whether they have PEFT's name.

    Raises:
        ValueError: they fit neither.
    """
    count = math.prod(magnitude)
    last = len(magnitude) > 1 and magnitude[0] == 1 and not (peft and len(magnitude) == 4)
    if count == weight[0] and (not last or count == 1):
        return True
    if count == weight[1] and (last or len(magnitude) == 1 or peft):
        return False
    raise ValueError(
        f"magnitudes of the shape {tuple(magnitude)} don't fit a weight of the shape {tuple(weight)}"
    )


def taken_off(start: str, weight: Tensor, rank: int, scale: float) -> Tensor:
    """What beginning an adapter has taken off the checkpoint's weight, (out, in).

    PiSSA (arXiv 2404.02948) takes off the weight's best approximation of the adapter's rank; OLoRA (arXiv
    2406.01775) the first columns of Q times the first rows of R of its QR decomposition, times alpha / rank.

    Raises:
        ValueError: a convolution's weight, which PEFT begins in neither way.
    """
    if weight.ndim != 2:
        raise ValueError(f"{start} is for linear layers")
    matrix = weight.double()
    if start == "olora":
        basis = torch.linalg.qr(matrix[:, :rank])[0]
        return scale * _projected(matrix, basis)
    if matrix.shape[0] > matrix.shape[1]:
        return taken_off(start, weight.T, rank, scale).T
    return _projected(matrix, torch.linalg.eigh(matrix @ matrix.T)[1][:, -rank:])


def _projected(matrix: Tensor, basis: Tensor) -> Tensor:
    """The part of a matrix that lies in the space of some orthonormal columns, in fp32."""
    return (basis @ (basis.T @ matrix)).float()
