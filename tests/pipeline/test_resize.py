"""One LoRA at another rank and precision: its delta weights against numpy's, its error, its header."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lib_ziplora.errors import ConfigError, LoraFileError, OutputError, UnsupportedLoraError
from lib_ziplora.pipeline.resize import ResizeRequest, resize

from ..support.pico_host import PicoHost

LAYERS = {
    f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_{part}": scale
    for part, scale in zip("qk", (1, 5), strict=True)
}
ROWS, COLUMNS, RANK, ALPHA = 48, 32, 8, 4.0
TRAINED = {"ss_tag_frequency": '{"x": {"sks": 3}}', "ss_network_dim": "8", "lora_adapter_metadata": "{}"}


@pytest.fixture
def host(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for name, scale in LAYERS.items():
        tensors[f"{name}.lora_up.weight"] = scale * rng.standard_normal((ROWS, RANK), np.float32)
        tensors[f"{name}.lora_down.weight"] = rng.standard_normal((RANK, COLUMNS), np.float32)
        tensors[f"{name}.alpha"] = np.array(ALPHA, np.float32)
    save_file(tensors, tmp_path / "dog.safetensors", TRAINED)
    return PicoHost(tmp_path)


def deltas(file):
    found = load_file(file)
    return {
        name: found[f"{name}.alpha"]
        / found[f"{name}.lora_down.weight"].shape[0]
        * (
            found[f"{name}.lora_up.weight"].astype(np.float64)
            @ found[f"{name}.lora_down.weight"].astype(np.float64)
        )
        for name in LAYERS
    }


def test_each_layer_is_its_best_approximation_and_the_error_is_told(host):
    done = resize(ResizeRequest("dog", "small", rank="3", precision="fp32"), host)
    old, new = (deltas(host.folder / f"{name}.safetensors") for name in ("dog", "small"))
    expected = {}
    for name, delta in old.items():
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        assert np.allclose(new[name], (left[:, :3] * values[:3]) @ right[:3], atol=1e-4)
        expected[name] = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
    assert done.worst == max(expected, key=expected.get)
    assert done.worst_error == pytest.approx(max(expected.values()), rel=1e-4)
    assert done.mean_error == pytest.approx(sum(expected.values()) / 2, rel=1e-4)
    norms = {name: np.square(delta).sum() for name, delta in old.items()}
    lost = sum(expected[name] ** 2 * norms[name] for name in old)
    assert done.error == pytest.approx(np.sqrt(lost / sum(norms.values())), rel=1e-4)
    assert done.ranks == (8, 3) and done.sizes == tuple(
        (host.folder / f"{n}.safetensors").stat().st_size for n in ("dog", "small")
    )
    assert [path.name for path in host.refreshed] == ["small.safetensors"]


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 0, 1e-6), ("fp16", 1e-5, 1e-3), ("bf16", 1e-4, 1e-2)]
)
def test_rounding_counts_as_error_too(host, precision, least, most):
    assert least <= resize(ResizeRequest("dog", "again", precision=precision), host).error <= most


def test_how_it_was_trained_stays_in_the_header_and_what_would_mislead_loaders_does_not(host):
    resize(ResizeRequest("dog", "sub/small", rank="3"), host)
    with safe_open(host.folder / "sub" / "small.safetensors", "np") as opened:
        found = opened.metadata()
    assert found["ss_tag_frequency"] == TRAINED["ss_tag_frequency"] and "lora_adapter_metadata" not in found
    assert (found["ss_network_dim"], found["ss_output_name"]) == ("3", "small")
    assert json.loads(found["ziplora_resized"])["of"] == "dog"


def test_what_can_not_be_resized_is_refused(host):
    with pytest.raises(ConfigError, match="rank"):
        ResizeRequest("dog", "small", rank="huge")
    with pytest.raises(OutputError, match="exists already"):
        resize(ResizeRequest("dog", "dog"), host)
    with pytest.raises(LoraFileError):
        resize(ResizeRequest("gone", "small"), host)
    sd1 = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{sd1}.lora_down.weight": np.zeros((2, 768), np.float32),
            f"{sd1}.lora_up.weight": np.zeros((320, 2), np.float32),
        },
        host.folder / "old.safetensors",
    )
    with pytest.raises(UnsupportedLoraError):
        resize(ResizeRequest("old", "small"), host)
    assert not (host.folder / "small.safetensors").exists()
