"""Adapters that peft wrote, against what peft's own merge makes of them."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lib_ziplora.errors import UnsupportedLoraError
from lib_ziplora.lora.formats.keys import canonical_unet_name
from lib_ziplora.lora.formats.peft_config import HEADER_KEY
from lib_ziplora.lora.io.inspect import inspect_header
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.lowrank import EXACT

peft = pytest.importorskip("peft")

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0."
SHAPES = {
    f"{BLOCK}attn1.to_q": (12, 12),
    f"{BLOCK}attn2.to_k": (12, 20),
    f"{BLOCK}ff.net.2": (12, 32),
    "down_blocks.1.resnets.0.conv1": (12, 8, 3, 3),
}
LINEAR = ["to_q", "to_k", "net.2"]
ALL = [*LINEAR, "conv1"]


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = nn.Module()
    for path, (out, inputs, *kernel) in SHAPES.items():
        *folders, leaf = path.split(".")
        owner = root
        for folder in folders:
            if not hasattr(owner, folder):
                setattr(owner, folder, nn.Module())
            owner = getattr(owner, folder)
        layer = nn.Conv2d(inputs, out, kernel, padding=1) if kernel else nn.Linear(inputs, out)
        layer.weight.data = torch.randn(out, inputs, *kernel, generator=generator)
        layer.bias.data = torch.randn(out, generator=generator)
        setattr(owner, leaf, layer)
    return root


def originals():
    return {path: module for path, module in model().named_modules() if path in SHAPES}


def trained(folder, config):
    """The file of an adapter with random numbers, and by path what peft's merge adds to weight and bias."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model(), config)
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    added = {}
    for name, module in wrapped.named_modules():
        path = name.removeprefix("base_model.model.")
        if path in SHAPES and hasattr(module, "merge"):
            module.merge()
            base, before = module.get_base_layer(), originals()[path]
            added[path] = (base.weight.detach() - before.weight, base.bias.detach() - before.bias.detach())
    return folder / "adapter_model.safetensors", added


def weights():
    return {canonical_unet_name(path): module.weight.detach() for path, module in originals().items()}.get


def assert_merged(file, added):
    lora = read_lora(file, weights(), EXACT)
    assert set(lora.layers) == {canonical_unet_name(path) for path in added}
    for path, (delta, _) in added.items():
        name = canonical_unet_name(path)
        torch.testing.assert_close(lora.layers[name].delta(), delta.detach(), rtol=1e-3, atol=2e-4)
    return lora


LORA = {"r": 4, "lora_alpha": 2, "target_modules": ALL}
CONFIGS = {
    "plain": lambda: peft.LoraConfig(**LORA, init_lora_weights=False),
    "regular expressions": lambda: peft.LoraConfig(
        **LORA,
        alpha_pattern={r".*attn2.*": 32, r"attn\d\.to_(q|k)": 7, "^conv1": 99},
        rank_pattern={r"attn1\.to_[qkv]": 2, r"resnets.\d+.conv1": 3},
        init_lora_weights=False,
    ),
    "rslora with patterns": lambda: peft.LoraConfig(
        **LORA, use_rslora=True, rank_pattern={"to_q": 8}, alpha_pattern={"net.2": 5}, init_lora_weights=False
    ),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True),
    "dora with rslora": lambda: peft.LoraConfig(**LORA, use_dora=True, use_rslora=True),
    "fan_in_fan_out": lambda: peft.LoraConfig(**LORA, fan_in_fan_out=True, init_lora_weights=False),
    "gaussian": lambda: peft.LoraConfig(**LORA, init_lora_weights="gaussian"),
    "orthogonal": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=LINEAR, init_lora_weights="orthogonal"
    ),
    "eva": lambda: peft.LoraConfig(r=4, lora_alpha=2, target_modules=LINEAR, init_lora_weights="eva"),
    "pissa": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=LINEAR, init_lora_weights="pissa", rank_pattern={"to_k": 2}
    ),
    "pissa with dora": lambda: peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=["to_k"], init_lora_weights="pissa", use_dora=True
    ),
    "olora": lambda: peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=LINEAR, init_lora_weights="olora", alpha_pattern={".*attn2.*": 2}
    ),
    "olora with rslora": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=LINEAR, init_lora_weights="olora", use_rslora=True
    ),
    "loha": lambda: peft.LoHaConfig(
        r=4, alpha=2, target_modules=ALL, init_weights=False, alpha_pattern={".*attn2.*": 8}, rank_pattern={"to_q": 2}
    ),
    "loha with cores": lambda: peft.LoHaConfig(
        r=4, alpha=1, target_modules=ALL, init_weights=False, use_effective_conv2d=True
    ),
    "lokr of factors": lambda: peft.LoKrConfig(
        r=1, alpha=3, target_modules=ALL, init_weights=False, decompose_both=True, alpha_pattern={".*attn1.*": 8}
    ),
    "lokr of whole matrices": lambda: peft.LoKrConfig(
        r=16, alpha=8, target_modules=ALL, init_weights=False, rank_pattern={r".*\.to_q": 64}
    ),
    "lokr with cores": lambda: peft.LoKrConfig(
        r=2, alpha=1, target_modules=ALL, init_weights=False, use_effective_conv2d=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_what_pefts_merge_makes_of_it(tmp_path, name):
    assert_merged(*trained(tmp_path, CONFIGS[name]()))


@pytest.mark.parametrize("name", ["regular expressions", "rslora with patterns", "dora", "pissa", "olora"])
def test_the_configuration_in_diffusers_header_is_the_same(tmp_path, name):
    file, added = trained(tmp_path, CONFIGS[name]())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").unlink()
    content = {
        f"unet.{key.removeprefix('base_model.model.')}": tensor for key, tensor in load_file(file).items()
    }
    header = {HEADER_KEY: json.dumps({f"unet.{key}": value for key, value in config.items()})}
    renamed = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(content, renamed, header)
    assert_merged(renamed, added)


@pytest.mark.parametrize(
    "prefix", ["unet.base_model.model.", "base_model.model.unet.", "base_model.model.base_model.model."]
)
def test_wrapped_prefixes_are_read(tmp_path, prefix):
    file, added = trained(tmp_path, CONFIGS["regular expressions"]())
    content = {
        prefix + key.removeprefix("base_model.model."): tensor for key, tensor in load_file(file).items()
    }
    save_file(content, file)
    assert_merged(file, added)


def test_the_bias_of_the_second_factor_is_a_bias_difference(tmp_path):
    config = peft.LoraConfig(**LORA, lora_bias=True, init_lora_weights=False)
    file, added = trained(tmp_path, config)
    lora = assert_merged(file, added)
    for path, (_, bias) in added.items():
        name = canonical_unet_name(path)
        torch.testing.assert_close(lora.extras[f"{name}.diff_b"], bias, rtol=1e-4, atol=1e-5)


def test_what_was_converted_from_pissa_is_an_ordinary_lora(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=LINEAR, init_lora_weights="pissa")
        wrapped = peft.get_peft_model(model(), config)
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(tmp_path / "start")
        wrapped.peft_config["default"].init_lora_weights = "pissa"
        torch.manual_seed(2)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        merged = {
            path: module.get_base_layer().weight + module.get_delta_weight("default")
            for name, module in wrapped.named_modules()
            if (path := name.removeprefix("base_model.model.")) in SHAPES and hasattr(module, "merge")
        }
        wrapped.save_pretrained(
            tmp_path / "done", path_initial_model_for_weight_conversion=tmp_path / "start"
        )
    file = tmp_path / "done" / "adapter_model.safetensors"
    assert inspect_header(file).relative_family() == ""
    lora = read_lora(file)
    for path, weight in merged.items():
        ours = lora.layers[canonical_unet_name(path)].delta()
        torch.testing.assert_close(ours, (weight - originals()[path].weight).detach(), rtol=1e-3, atol=1e-4)


def test_an_adapter_that_is_relative_says_so_and_needs_the_checkpoint(tmp_path):
    file, _ = trained(tmp_path, CONFIGS["pissa"]())
    header = inspect_header(file)
    assert header.relative_family() == "pissa"
    assert any("began as PiSSA" in remark for remark in header.remarks)
    with pytest.raises(UnsupportedLoraError, match=r"PiSSA .*--checkpoint"):
        read_lora(file)


def test_whole_weights_beside_an_adapter_are_refused_by_name(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["to_q"], modules_to_save=["conv1"])
    file, _ = trained(tmp_path, config)
    with pytest.raises(UnsupportedLoraError, match=r"modules_to_save.*conv1\.(weight|bias)"):
        read_lora(file, weights())


TYPES = {
    "PEFT's OFT": lambda: peft.OFTConfig(r=2, oft_block_size=0, target_modules=["to_q"]),
    "PEFT's BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["to_q"]),
    "PEFT's (IA)3": lambda: peft.IA3Config(target_modules=["to_q"], feedforward_modules=[]),
    "VeRA": lambda: peft.VeraConfig(r=2, target_modules=["to_q"]),
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=["to_q"]),
    "Bone": lambda: peft.BoneConfig(r=2, target_modules=["to_q"]),
    "MiSS": lambda: peft.MissConfig(r=2, target_modules=["to_q"]),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=4, target_modules=["to_q"]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=2, target_modules=["to_q"], total_step=10),
    "(SHIRA|not known here)": lambda: peft.ShiraConfig(r=2, target_modules=["to_q"]),
    "(VBLORA|not known here)": lambda: peft.VBLoRAConfig(
        r=2, num_vectors=4, vector_length=4, target_modules=["to_q"]
    ),
    "(RANDLORA|not known here)": lambda: peft.RandLoraConfig(r=2, target_modules=["to_q"]),
    "(ROAD|not known here)": lambda: peft.RoadConfig(group_size=4, target_modules=["to_q"]),
    "(C3A|not known here)": lambda: peft.C3AConfig(block_size=4, target_modules=["to_q"]),
}


@pytest.mark.parametrize("label", TYPES)
def test_pefts_other_types_are_refused_by_name(tmp_path, label):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model(), TYPES[label]())
    wrapped.save_pretrained(tmp_path)
    label = label.replace("(IA)", r"\(IA\)")
    for checkpoint in (None, weights()):
        with pytest.raises(UnsupportedLoraError, match=label):
            read_lora(tmp_path / "adapter_model.safetensors", checkpoint)
