"""Delta weights of every family, against formulae written out here, LyCORIS, and the WebUI's own classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_ziplora.lora.formats import deltas
from lib_ziplora.lora.formats import families as lycoris

from . import webui_networks
from .adapter_samples import CONV, LINEAR, SAMPLES, loha, lora, rand

EVERY = pytest.mark.parametrize("name", SAMPLES)
# The WebUI raises on these, and divides magnitudes of outputs by the inputs' lengths.
WEBUI_FAILS = ("glora-new", "ia3-output-12x8x3x3", "ia3-output-12x8x1x1")


def value(parts, name):
    return parts[name].double().numpy()


def per_entry(shape, entry):
    """A dense weight from a function of (out, in, place in the kernel)."""
    kernel = int(np.prod(shape[2:]))
    dense = np.zeros((shape[0], shape[1], kernel))
    for o in range(shape[0]):
        for i in range(shape[1]):
            for k in range(kernel):
                dense[o, i, k] = entry(o, i, k)
    return dense.reshape(shape)


def expected_lora(parts, weight):
    up, down = value(parts, "up"), value(parts, "down")
    up = up.reshape(up.shape[0], -1)
    rank = down.shape[0]
    scale = float(parts["scale"]) if "scale" in parts else float(parts.get("alpha", rank)) / rank
    if "mid" in parts:
        mid, down = value(parts, "mid"), down.reshape(rank, -1)
        kernel = mid.shape[3]

        def entry(o, i, k):
            return scale * up[o] @ mid[:, :, k // kernel, k % kernel] @ down[:, i]

        return per_entry(weight.shape, entry)
    down = down.reshape(rank, down.shape[1], -1)
    return per_entry(weight.shape, lambda o, i, k: scale * up[o] @ down[:, i, k])


def expected_loha(parts, weight):
    shape = weight.shape
    kernel = int(np.prod(shape[2:]))
    rank = value(parts, "hada_w1_b").shape[0]

    def half(n):
        a, b = value(parts, f"hada_w{n}_a"), value(parts, f"hada_w{n}_b")
        if f"hada_t{n}" in parts:
            core = value(parts, f"hada_t{n}").reshape(rank, rank, -1)
            return lambda o, i, k: a[:, o] @ core[:, :, k] @ b[:, i]
        return lambda o, i, k: a[o] @ b[:, i * kernel + k]

    one, two = half(1), half(2)
    scale = float(parts["alpha"]) / rank
    return per_entry(shape, lambda o, i, k: scale * one(o, i, k) * two(o, i, k))


def expected_lokr(parts, weight):
    first = value(parts, "lokr_w1") if "lokr_w1" in parts else None
    scale = 1.0
    if first is None:
        a, b = value(parts, "lokr_w1_a"), value(parts, "lokr_w1_b")
        first, scale = a @ b, float(parts["alpha"]) / b.shape[0]
    kernel = int(np.prod(weight.shape[2:]))
    if "lokr_w2" in parts:
        second = value(parts, "lokr_w2").reshape(weight.shape[0] // first.shape[0], -1, kernel)
    else:
        a, b = value(parts, "lokr_w2_a"), value(parts, "lokr_w2_b")
        scale = float(parts["alpha"]) / b.shape[0]
        if "lokr_t2" in parts:
            core = value(parts, "lokr_t2")
            second = np.stack([a.T @ core[:, :, k // 3, k % 3] @ b for k in range(kernel)], axis=-1)
        else:
            second = (a @ b).reshape(a.shape[0], -1, kernel)
    b, d = second.shape[:2]
    return per_entry(weight.shape, lambda o, i, k: scale * first[o // b, i // d] * second[o % b, i % d, k])


def expected_ia3(parts, weight):
    factors, on_input = value(parts, "weight").reshape(-1), bool(parts["on_input"])
    dense = weight.reshape(*weight.shape[:2], -1)
    return per_entry(weight.shape, lambda o, i, k: dense[o, i, k] * factors[i if on_input else o])


def expected_glora(parts, weight, old):
    a1, a2, b1, b2 = (value(parts, f"{n}.weight") for n in ("a1", "a2", "b1", "b2"))
    if old:
        return b2 @ b1 + weight @ a2 @ a1
    flat = weight.reshape(*weight.shape[:2], -1)
    inner = a1.reshape(a1.shape[0], -1) @ a2.reshape(a2.shape[0], -1)
    b1, b2 = b1.reshape(b1.shape[0], -1), b2.reshape(b2.shape[0], flat.shape[1], -1)
    scale = float(parts["alpha"]) / a2.shape[0]
    return per_entry(
        weight.shape, lambda o, i, k: scale * (flat[o, :, k] @ inner[:, i] + b1[o] @ b2[:, i, k])
    )


def cayley(block, limit, length):
    skew = (block - block.T) * (limit / length if limit and length > limit else 1.0)
    eye = np.eye(len(block))
    return (eye + skew) @ np.linalg.inv(eye - skew)


def expected_oft(parts, weight):
    flat = weight.reshape(weight.shape[0], -1)
    blocks = value(parts, "oft_blocks" if "oft_blocks" in parts else "oft_diag")
    skew = blocks - np.swapaxes(blocks, -1, -2)
    limit, length = float(parts.get("alpha", 0)) * weight.shape[0], np.linalg.norm(skew.ravel())
    size = blocks.shape[-1]
    rotated = np.array(flat)
    for stage in range(blocks.shape[0] if blocks.ndim == 4 else 1):
        rotation = np.zeros((len(flat), len(flat)))
        for n, block in enumerate(blocks[stage] if blocks.ndim == 4 else blocks):
            turn = block if "oft_diag" in parts else cayley(block, limit, length)
            rows = np.arange(n * size, (n + 1) * size)
            if (
                blocks.ndim == 4
            ):  # row 2j + s of a stage is output j + s * stride, within groups of 2 * stride
                stride = 2**stage * size // 2
                group, j, s = rows // (2 * stride), rows % (2 * stride) // 2, rows % 2
                rows = group * 2 * stride + s * stride + j
            rotation[np.ix_(rows, rows)] = turn if blocks.ndim == 4 else turn.T
        rotated = rotation @ rotated
    if "rescale" in parts:
        rotated = rotated * value(parts, "rescale").reshape(-1, 1)
    return (rotated - flat).reshape(weight.shape)


def expected(name, sample):
    parts, weight = dict(sample.parts), sample.weight.double().numpy()
    magnitude = parts.pop("dora_scale", None)
    family = {"dora": "lora", "doha": "loha", "dokr": "lokr", "locon": "lora", "boft": "oft"}.get(
        name.split("-")[0], name.split("-")[0]
    )
    if family in ("full", "norm"):
        return value(parts, "diff" if family == "full" else "w_norm")
    if family == "glora":
        delta = expected_glora(parts, weight, "old" in name)
    else:
        delta = globals()[f"expected_{family}"](parts, weight)
    if magnitude is None:
        return delta
    moved, axis = weight + delta, 0 if "rows" in name else 1
    lengths = np.sqrt((moved**2).sum(axis=tuple(a for a in range(moved.ndim) if a != axis), keepdims=True))
    return moved / lengths * magnitude.double().numpy() - weight


def assert_close(ours, theirs):
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=2e-5 * scale)


@EVERY
def test_delta_equals_the_formula(name):
    sample = SAMPLES[name]
    weight = sample.weight if lycoris.needs_weight(sample.parts) else None
    assert_close(lycoris.delta_weight(sample.parts, sample.shape, weight), expected(name, sample))


@EVERY
def test_the_weight_is_needed_exactly_where_it_changes_the_delta(name):
    sample = SAMPLES[name]
    if lycoris.needs_weight(sample.parts):
        with pytest.raises(ValueError, match="needs the checkpoint's weight"):
            lycoris.delta_weight(sample.parts, sample.shape)
    else:
        other = lycoris.delta_weight(sample.parts, sample.shape, 2 * sample.weight)
        torch.testing.assert_close(other, lycoris.delta_weight(sample.parts, sample.shape, sample.weight))


@pytest.mark.webui
@pytest.mark.skipif(not webui_networks.PRESENT, reason="needs ZIPLORA_WEBUI=<folder of a WebUI>")
@EVERY
def test_delta_equals_the_webui(name):
    sample = SAMPLES[name]
    if name.startswith(WEBUI_FAILS):
        try:
            theirs = webui_networks.updown(sample.parts, sample.weight)[0]
        except RuntimeError:
            return
        assert theirs.shape != sample.weight.shape
        return
    theirs = webui_networks.updown(sample.parts, sample.weight)[0]
    ours = lycoris.delta_weight(sample.parts, sample.shape, sample.weight)
    if "rows" in name:
        assert float((ours - theirs).norm() / ours.norm()) > 0.01
        return
    assert_close(ours, theirs)


@pytest.mark.webui
@pytest.mark.skipif(not webui_networks.PRESENT, reason="needs ZIPLORA_WEBUI=<folder of a WebUI>")
def test_the_webui_takes_a_bias_difference_beside_a_pair_but_not_alone():
    make = rand(3)
    pair, weight = lora(make, LINEAR), make(*LINEAR)
    with_bias, bias = webui_networks.updown({**pair, "diff_b": make(12)}, weight)
    assert with_bias.equal(webui_networks.updown(pair, weight)[0]) and bias is None
    with pytest.raises(LookupError):
        webui_networks.updown({"diff_b": make(12)}, weight)
    norm = {"w_norm": make(12), "b_norm": make(12)}
    difference, bias = webui_networks.updown(norm, make(12), strength=0.5)
    assert difference.equal(0.5 * norm["w_norm"]) and bias.equal(0.5 * norm["b_norm"])


def by_lycoris(name, sample):
    """LyCORIS's own functions on the same tensors."""
    functional = pytest.importorskip("lycoris.functional")
    p, kind = sample.parts, name.split("-")[0]
    alpha = float(p.get("alpha", 0))
    if kind in ("lora", "locon"):
        down = p["down"]
        scale = float(p.get("alpha", down.shape[0])) / down.shape[0]
        return functional.locon.diff_weight(down, p["up"], p.get("mid"), gamma=scale)
    if kind == "loha":
        tensors = (p["hada_w1_b"], p["hada_w1_a"], p["hada_w2_b"], p["hada_w2_a"])
        gamma = torch.tensor(alpha / p["hada_w1_b"].shape[0])
        return functional.loha.diff_weight(*tensors, p.get("hada_t1"), p.get("hada_t2"), gamma=gamma)
    if kind == "lokr":
        tails = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        tensors = [p.get(f"lokr_{tail}") for tail in tails]
        if name.startswith("lokr-whole-tucker"):
            # its diff_weight divides by another dimension here than its module does
            return functional.lokr.kron_weight(*tensors, scale=alpha / p["lokr_w2_b"].shape[0])
        whole = "lokr_w1" in p and "lokr_w2" in p
        return functional.lokr.diff_weight(*tensors, gamma=1.0 if whole else alpha)
    limit = alpha * sample.shape[0]
    function = getattr(functional, "boft" if kind == "boft" else "diag_oft").diff_weight
    return function(sample.weight, p["oft_blocks"], p.get("rescale"), constraint=limit)


HAS_FUNCTION = ("lora-", "locon", "loha", "lokr", "oft-0", "boft")


@pytest.mark.parametrize("name", [n for n in SAMPLES if n.startswith(HAS_FUNCTION) and "-scale" not in n])
def test_delta_equals_lycoris(name):
    sample = SAMPLES[name]
    theirs = by_lycoris(name, sample)
    ours = lycoris.delta_weight(sample.parts, sample.shape, sample.weight)
    assert_close(ours, theirs.detach().reshape(sample.shape))


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith(("ia3", "glora-new"))])
def test_delta_equals_a_lycoris_module(name):
    modules = pytest.importorskip("lycoris.modules")
    sample = SAMPLES[name]
    owner = webui_networks._owner(sample.weight)
    if name.startswith("ia3"):
        module = modules.IA3Module("x", owner, train_on_input=bool(sample.parts["on_input"]))
    else:
        module = modules.GLoRAModule("x", owner, lora_dim=3, alpha=1.5)
    own = dict(module.named_parameters())
    for part, tensor in sample.parts.items():
        if part in own:
            own[part].data.copy_(tensor.reshape(own[part].shape))
    ours = lycoris.delta_weight(sample.parts, sample.shape, sample.weight)
    assert_close(ours, module.get_diff_weight()[0].detach())


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("form", [lora, loha])
def test_magnitudes_equal_lycoris(shape, form):
    general = pytest.importorskip("lycoris.functional.general")
    make = rand(1)
    weight, delta = make(*shape), lycoris.delta_weight(form(make, shape), shape)
    magnitude = make(shape[0], *[1] * (len(shape) - 1)).abs()
    theirs = general.weight_decompose(weight + delta, magnitude, wd_on_out=True) - weight
    assert_close(deltas.decomposed(weight, delta, magnitude, True), theirs)
    columns = make(1, shape[1], *[1] * (len(shape) - 2)).abs()
    theirs = general.weight_decompose(weight + delta, columns, wd_on_out=False) - weight
    assert_close(deltas.decomposed(weight, delta, columns, False), theirs)


def test_a_decomposition_with_the_weights_own_lengths_changes_nothing():
    weight = rand(2)(*CONV)
    lengths = weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, 1, 1)
    assert deltas.decomposed(weight, torch.zeros(CONV), lengths, False).abs().max() < 1e-6
    rows = weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert deltas.decomposed(weight, torch.zeros(CONV), rows, True).abs().max() < 1e-6


def test_a_decomposition_keeps_columns_of_zeros():
    weight = torch.zeros(3, 2)
    assert deltas.decomposed(weight, torch.zeros(3, 2), torch.ones(1, 2), False).equal(weight)


def test_parts_of_no_family_are_said():
    with pytest.raises(ValueError, match="no family has the parts hada_w1_a"):
        lycoris.delta_weight({"hada_w1_a": torch.zeros(2, 2)})


def test_half_precision_parts_give_fp32():
    for sample in SAMPLES.values():
        parts = {k: v.half() if v.ndim else v for k, v in sample.parts.items()}
        delta = lycoris.delta_weight(parts, sample.shape, sample.weight.half())
        assert delta.dtype == torch.float32
