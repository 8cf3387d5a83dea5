"""Files of every family, read into canonical layers; what they carry beside them."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_ziplora.errors import LoraFileError, UnsupportedLoraError, ZipLoraError
from lib_ziplora.lora.formats import families as lycoris
from lib_ziplora.lora.formats.keys import FAMILY_PARTS
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.lowrank import EXACT, RankRule

from .adapter_samples import LINEAR, SAMPLES, loha, rand
from .files import CONV, SKIP, TE1, Q, layer, layers, save, tensors

TAILS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
NORM = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"
LABELS = {"doha": "dora", "dokr": "dora", "boft": "oft", "locon": "lora"}


def module_of(sample):
    if len(sample.shape) == 1:
        return NORM
    return Q if len(sample.shape) == 2 else (SKIP if sample.shape[2:] == (1, 1) else CONV)


def named(module, parts):
    return {f"{module}.{TAILS.get(part, part)}": tensor.contiguous() for part, tensor in parts.items()}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_family_is_read_with_its_delta(tmp_path, name):
    sample = SAMPLES[name]
    module = module_of(sample)
    file = save(tmp_path / "a.safetensors", named(module, sample.parts))
    lora = read_lora(file, weights={module: sample.weight}.get, rule=EXACT)
    delta = lycoris.delta_weight(sample.parts, sample.shape, sample.weight)
    if module == NORM:
        assert not lora.layers and lora.extras[f"{NORM}.w_norm"].equal(delta)
        assert lora.extras[f"{NORM}.b_norm"].equal(sample.parts["b_norm"])
        return
    ours = lora.layers[module].delta()
    shape = sample.shape[:2] if sample.shape[2:] == (1, 1) else sample.shape
    assert ours.shape == shape
    torch.testing.assert_close(ours, delta.reshape(shape), rtol=1e-4, atol=2e-5 * float(delta.abs().max()))
    family = LABELS.get(name.split("-")[0], name.split("-")[0])
    assert [item.family for item in lora.approximations] == ([] if family == "lora" else [family])
    assert all(item.error < 1e-5 and item.layer == module for item in lora.approximations)
    assert lora.unknown == ()
    assert set(lora.extras) == ({f"{module}.diff_b"} if family == "full" else set())
    header = inspect_header(file)
    assert (header.family, header.layers, header.base) == (family, 1, "sdxl") or "do" in name


@pytest.mark.parametrize("rule", [None, RankRule(0.8), RankRule(1.0, 2)])
def test_the_rank_follows_the_rule_and_the_error_is_told(tmp_path, rule):
    parts = loha(rand(3), LINEAR)
    lora = read_lora(save(tmp_path / "a.safetensors", named(Q, parts)), rule=rule)
    (found,), delta = lora.approximations, lycoris.delta_weight(parts, LINEAR)
    error = float((delta - lora.layers[Q].delta()).norm() / delta.norm())
    assert math.isclose(found.error, error, rel_tol=1e-3, abs_tol=1e-6)
    assert found.rank == lora.layers[Q].rank
    if rule is not None and rule.limit:
        assert found.rank == 2
    else:
        assert error**2 <= 1 - (0.995 if rule is None else 0.8)


def test_families_side_by_side(tmp_path):
    content = tensors(layers(layer(CONV, 12, (8, 3, 3)), layer(TE1, 4, 4)))
    content |= named(Q, SAMPLES["lokr-whole-factors-12x8"].parts)
    file = save(tmp_path / "a.safetensors", content)
    header = inspect_header(file)
    assert (header.family, header.unet_layers, header.text_layers) == ("lora+lokr", 2, 1)
    lora = read_lora(file)
    assert set(lora.layers) == {Q, CONV, TE1}
    assert [item.layer for item in lora.approximations] == [Q]


def test_a_family_that_needs_the_checkpoint_says_what_is_missing(tmp_path):
    file = save(tmp_path / "a.safetensors", named(Q, SAMPLES["ia3-input-12x8"].parts))
    with pytest.raises(UnsupportedLoraError, match=rf"{Q}.*\(IA\)3.*checkpoint has no such layer"):
        read_lora(file, weights=lambda name: None)
    file = save(tmp_path / "b.safetensors", named(TE1, SAMPLES["dora-columns-12x8"].parts))
    with pytest.raises(UnsupportedLoraError, match=rf"{TE1}.*DoRA.*checkpoint has no such layer"):
        read_lora(file, weights=lambda name: None)
    file = save(tmp_path / "c.safetensors", named(Q, SAMPLES["glora-new-12x8"].parts))
    with pytest.raises(LoraFileError, match=f"{Q} don't fit each other or the model"):
        read_lora(file, weights=lambda name: torch.zeros(7, 5))


def test_peft_names_of_dora_mean_one_magnitude_for_every_output(tmp_path):
    make = rand(1)
    down, up, magnitude, weight = make(3, 8), make(12, 3), make(12).abs(), make(12, 8)
    path = "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    content = {
        f"{path}.lora_A.default.weight": down,
        f"{path}.lora_B.default.weight": up,
        f"{path}.lora_magnitude_vector.default.weight": magnitude,
    }
    lora = read_lora(save(tmp_path / "a.safetensors", content), weights={Q: weight}.get, rule=EXACT)
    moved = weight + up @ down
    expected = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True) - weight
    torch.testing.assert_close(lora.layers[Q].delta(), expected, rtol=1e-4, atol=1e-5)


def test_a_bias_of_pefts_up_projection_is_a_bias_difference(tmp_path):
    path = "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    content = {
        f"{path}.lora_A.weight": torch.ones(2, 5),
        f"{path}.lora_B.weight": torch.ones(6, 2),
        f"{path}.lora_B.bias": torch.ones(6),
        f"{path}.alpha": torch.tensor(1.0),
    }
    lora = read_lora(save(tmp_path / "a.safetensors", content))
    assert lora.extras[f"{Q}.diff_b"].equal(torch.full((6,), 0.5))
    assert lora.layers[Q].rank == 2


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"hada_w1_a": (2, 2), "hada_w1_b": (2, 2)}, f"{Q} has only hada_w1_a, hada_w1_b"),
        ({"lokr_w1": (2, 2), "alpha": ()}, f"{Q} has only alpha, lokr_w1"),
        ({"lokr_w1": (2, 2), "lokr_w2": (2, 0)}, f"lokr_w2 of layer {Q} is empty"),
        ({"lokr_w1": (9000, 9000), "lokr_w2": (1, 1)}, f"{Q} don't fit"),
        ({f"hada_w{n}": (2, 3) for n in ("1_a", "1_b", "2_a", "2_b")}, f"{Q} don't fit"),
        ({"diff": (2, 2), "diff_b": (3,)}, f"diff_b of layer {Q} has 3 values instead of 2"),
        ({"diff": (2,)}, f"{Q} don't fit"),
        ({"diff": (2, 2), "scale": (2,)}, f"scale of layer {Q} has 2 values"),
    ],
)
def test_a_broken_layer_of_another_family_is_named(tmp_path, parts, words):
    content = {f"{Q}.{part}": torch.ones(shape) for part, shape in parts.items()}
    with pytest.raises(LoraFileError, match=f"a.safetensors: .*{words}"):
        read_lora(save(tmp_path / "a.safetensors", content))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    parts = dict(SAMPLES["lokr-whole-whole-12x8"].parts)
    parts["lokr_w2"] = torch.full_like(parts["lokr_w2"], torch.nan)
    with pytest.raises(LoraFileError, match=f"lokr_w2 of layer {Q} contains NaN"):
        read_lora(save(tmp_path / "a.safetensors", named(Q, parts)))


SIZES = st.lists(st.integers(0, 4), max_size=4)
PART = st.sampled_from(
    sorted({*FAMILY_PARTS, "alpha", "scale", "weight", "lora_up.weight", "lora_down.weight"})
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(PART, SIZES, min_size=1, max_size=7), st.sampled_from([Q, CONV, SKIP, NORM, TE1]))
def test_whatever_the_parts_and_shapes_the_end_is_a_lora_or_a_sentence(tmp_path, parts, module):
    content = {f"{module}.{part}": torch.ones(shape) for part, shape in parts.items()}
    file = save(tmp_path / "a.safetensors", content)
    for weights in (None, lambda name: torch.ones(4, 4), lambda name: torch.ones(4, 2, 3, 3)):
        try:
            lora = read_lora(file, weights)
        except ZipLoraError as error:
            assert "a.safetensors" in str(error)
        else:
            assert all(bool(torch.isfinite(layer.delta()).all()) for layer in lora.layers.values())


def cut_or_changed(parts, seed):
    """A module with one tensor left out, or of another shape."""
    names = sorted(parts)
    name = names[seed % len(names)]
    if seed % 2:
        return {part: tensor for part, tensor in parts.items() if part != name}
    tensor = parts[name]
    shape = (*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.ndim else (2,)
    return {**parts, name: torch.ones(shape)}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_module_of_any_family_is_a_lora_or_a_sentence(tmp_path, name, seed):
    sample = SAMPLES[name]
    module = module_of(sample)
    file = save(tmp_path / "a.safetensors", named(module, cut_or_changed(sample.parts, seed)))
    with contextlib.suppress(ZipLoraError):
        lora = read_lora(file, {module: sample.weight}.get)
        assert lora.layers or lora.extras


def test_a_flattened_convolution_gets_its_kernel_back(tmp_path):
    sample = SAMPLES["lokr-whole-factors-12x8x3x3"]
    lora = read_lora(save(tmp_path / "a.safetensors", named(CONV, sample.parts)), rule=EXACT)
    assert lora.layers[CONV].weight_shape == (12, 8, 3, 3)
    parts = loha(rand(0), (12, 8))
    with pytest.raises(LoraFileError, match="don't fit each other"):
        read_lora(save(tmp_path / "b.safetensors", named(CONV, parts)))
