"""DoRA in every layout that trainers write, against its formula."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.errors import LoraFileError, UnsupportedLoraError
from lib_ziplora.lora.io.inspect import inspect_header, unsupported_reason
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.lowrank import EXACT

from . import webui_networks
from .adapter_samples import rand
from .files import CONV, SKIP, TE1, TE2, Q, save

SHAPES = {Q: (12, 8), TE1: (10, 10), CONV: (12, 8, 3, 3), SKIP: (6, 6, 1, 1)}
EVERY = pytest.mark.parametrize("name", SHAPES)
# Layout -> (tail, shape of the magnitudes in a layer of a shape, on the outputs?)
LAYOUTS = {
    "LyCORIS on outputs": ("dora_scale", lambda shape: (shape[0], *[1] * (len(shape) - 1)), True),
    "LyCORIS on inputs": ("dora_scale", lambda shape: (1, shape[1], *[1] * (len(shape) - 2)), False),
    "PEFT": (
        "lora_magnitude_vector",
        lambda shape: (shape[0],) if len(shape) == 2 else (1, shape[0], 1, 1),
        True,
    ),
    "PEFT, whole state": ("lora_magnitude_vector.default.weight", lambda shape: (shape[0],), True),
    "ai-toolkit": ("magnitude", lambda shape: (shape[0],), True),
    "flat": ("dora_scale", lambda shape: (shape[0],), True),
}


def by_formula(weight, delta, magnitude, on_outputs):
    """W' = m (W + D) / ||W + D||, the length over all but the outputs or all but the inputs."""
    moved = weight.double() + delta.double()
    axes = [axis for axis in range(moved.ndim) if axis != (0 if on_outputs else 1)]
    lengths = moved.pow(2).sum(axes, keepdim=True).sqrt()
    return moved / lengths * magnitude.double().reshape(lengths.shape) - weight.double()


def made(name, layout, seed=0, alpha=1.5, rank=3):
    """(tensors of the file, weight, what they add to it)."""
    tail, magnitude_shape, on_outputs = LAYOUTS[layout]
    shape, make = SHAPES[name], rand(seed)
    down, up, weight = make(rank, *shape[1:]), make(shape[0], rank, *[1] * (len(shape) - 2)), make(*shape)
    magnitude = make(*magnitude_shape(shape)).abs() + 0.5
    delta = (up.flatten(1) @ down.flatten(1)).reshape(shape) * alpha / rank
    content = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(alpha),
        f"{name}.{tail}": magnitude,
    }
    return content, weight, by_formula(weight, delta, magnitude, on_outputs)


@EVERY
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_magnitudes_mean_what_their_trainer_means(tmp_path, name, layout):
    content, weight, expected = made(name, layout)
    lora = read_lora(save(tmp_path / "a.safetensors", content), {name: weight}.get, EXACT)
    ours = lora.layers[name].delta().double()
    torch.testing.assert_close(ours, expected.reshape(ours.shape), rtol=1e-3, atol=1e-4)


@EVERY
@pytest.mark.parametrize("layout", LAYOUTS)
def test_that_automatic1111_draws_it_otherwise_is_said_where_it_is_so(tmp_path, name, layout):
    header = inspect_header(save(tmp_path / "a.safetensors", made(name, layout)[0]))
    said = any("Automatic1111" in remark for remark in header.remarks)
    assert said == LAYOUTS[layout][2]


@pytest.mark.parametrize("shape", [(3,), (8, 1), (1, 12), (12, 8)])
def test_magnitudes_that_fit_neither_side_are_refused(tmp_path, shape):
    content, weight, _ = made(Q, "ai-toolkit")
    content[f"{Q}.dora_scale"] = torch.ones(shape)
    del content[f"{Q}.magnitude"]
    with pytest.raises(LoraFileError, match=f"{Q} don't fit"):
        read_lora(save(tmp_path / "a.safetensors", content), {Q: weight}.get)


def test_a_lycoris_module_agrees_on_both_sides(tmp_path):
    modules = pytest.importorskip("lycoris.modules")
    for index, on_outputs in enumerate((True, False)):
        owner = torch.nn.Linear(8, 12, bias=False)
        module = modules.LoConModule(
            Q, owner, lora_dim=3, alpha=1.5, weight_decompose=True, wd_on_out=on_outputs
        )
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
            weight = owner.weight.detach().clone()
            merged = module.get_merged_weight()[0].detach()
        content = {f"{Q}.{key}": tensor.contiguous() for key, tensor in module.custom_state_dict().items()}
        lora = read_lora(save(tmp_path / f"{index}.safetensors", content), {Q: weight}.get, EXACT)
        torch.testing.assert_close(lora.layers[Q].delta(), merged - weight, rtol=1e-3, atol=1e-4)


def test_text_encoder_dora_is_needed_only_where_text_encoders_are(tmp_path):
    (unet, _, _), (text, weight, expected) = made(Q, "PEFT"), made(TE1, "LyCORIS on outputs")
    plain = {key: value for key, value in unet.items() if "magnitude" not in key}
    file = save(tmp_path / "a.safetensors", plain | text)
    header = inspect_header(file)
    assert (header.relative_family(), header.relative_family(text=False)) == ("dora", "")
    assert unsupported_reason(header, checkpoint=False, text=False) == ""
    assert "DoRA" in unsupported_reason(header, checkpoint=False)
    assert set(read_lora(file, text=False).layers) == {Q}
    with pytest.raises(UnsupportedLoraError, match="--checkpoint"):
        read_lora(file)
    ours = read_lora(file, {TE1: weight}.get, EXACT).layers[TE1].delta()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4)


def test_plain_text_encoder_layers_are_read_where_dora_is_left_out(tmp_path):
    text, _, _ = made(TE1, "PEFT")
    other = {f"{TE2}.lora_down.weight": torch.ones(1, 4), f"{TE2}.lora_up.weight": torch.ones(8, 1)}
    assert set(read_lora(save(tmp_path / "a.safetensors", text | other), text=False).layers) == {TE2}


@pytest.mark.webui
@pytest.mark.skipif(not webui_networks.PRESENT, reason="needs ZIPLORA_WEBUI=<folder of a WebUI>")
@pytest.mark.parametrize("name", [Q, CONV])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if LAYOUTS[layout][0] == "dora_scale"])
def test_the_webui_draws_what_was_trained_with_the_merged_file_if_not_with_the_original(
    tmp_path, name, layout
):
    content, weight, expected = made(name, layout)
    original, merged = save(tmp_path / "a.safetensors", content), tmp_path / "merged.safetensors"
    write_lora(merged, read_lora(original, {name: weight}.get, EXACT).layers, precision="fp32")
    owner, key = webui_networks._owner(weight), name.replace("lora_unet", "diffusion_model")
    drawn = webui_networks.load_network(merged, {key: owner})[key].double()
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)
    try:
        by_original = webui_networks.load_network(original, {key: owner})[key].double()
    except RuntimeError:  # magnitudes without the other dimensions
        by_original = torch.zeros_like(expected)
    error = float((by_original - expected).norm() / expected.norm())
    assert error > 0.01 if LAYOUTS[layout][2] else error < 1e-3
