"""PEFT's configuration beside a file, and reading that can be interrupted."""

from __future__ import annotations

import json

import pytest

from lib_ziplora.errors import Interrupted, UnsupportedLoraError
from lib_ziplora.lora.formats.peft_config import HEADER_KEY, SIDECAR, SIDECAR_LIMIT
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.lowrank import RankRule

from .adapter_samples import SAMPLES
from .files import DIALECTS, K2, OUT, Q, layer, layers, save, tensors
from .test_families import named

CONFIG = {
    "peft_type": "LORA",
    "r": 3,
    "lora_alpha": 6,
    "alpha_pattern": {"mid_block.attentions.0.transformer_blocks.1.attn2.to_k": 1.0},
}


def scalings(folder, dialect="peft", **options):
    content = tensors(
        layers(layer(Q, rank=3), layer(K2, rank=2)), DIALECTS[dialect], with_alpha=False, **options
    )
    return {
        n: item.scaling
        for n, item in read_lora(save(folder / "adapter_model.safetensors", content)).layers.items()
    }


def test_pefts_configuration_beside_the_file_gives_the_alphas(tmp_path):
    (tmp_path / SIDECAR).write_text(json.dumps(CONFIG))
    assert scalings(tmp_path) == pytest.approx({Q: 2.0, K2: 0.5})
    (tmp_path / SIDECAR).write_text(json.dumps(CONFIG | {"use_rslora": True, "alpha_pattern": {}}))
    assert scalings(tmp_path) == pytest.approx({Q: 6 / 3**0.5, K2: 6 / 2**0.5})
    (tmp_path / SIDECAR).write_text(json.dumps(CONFIG | {"alpha_pattern": {"^attn1.to_q": 3, "to_q": 9}}))
    assert scalings(tmp_path) == pytest.approx({Q: 3.0, K2: 3.0})  # ^ is the start of unet.down_blocks


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_an_editors_encoding_changes_nothing(tmp_path, encoding):
    (tmp_path / SIDECAR).write_bytes(json.dumps(CONFIG).encode(encoding))
    assert scalings(tmp_path) == pytest.approx({Q: 2.0, K2: 0.5})


def test_what_a_configuration_leaves_out_is_pefts_own_default(tmp_path):
    peft = pytest.importorskip("peft")
    (tmp_path / SIDECAR).write_text('{"peft_type": "LORA"}')
    alpha = peft.LoraConfig().lora_alpha
    assert scalings(tmp_path) == pytest.approx({Q: alpha / 3, K2: alpha / 2})
    assert {peft.LoHaConfig().alpha, peft.LoKrConfig().alpha, peft.LoraConfig().r} == {alpha}


BROKEN = "its PEFT configuration, .*, can't be read.*Put the one there"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", BROKEN),
        (b"[]", BROKEN),
        (b"{", BROKEN),
        (b"\xff\xfe", BROKEN),
        (b"[" * 100_000, BROKEN),
        (json.dumps(CONFIG).encode() + b" " * SIDECAR_LIMIT, BROKEN),
        (json.dumps(CONFIG | {"peft_type": "LOHA"}).encode(), "is for LOHA, which the file is not"),
        (json.dumps(CONFIG | {"lora_alpha": "6"}).encode(), "lora_alpha in .* is '6' instead of a number"),
        (json.dumps(CONFIG | {"lora_alpha": True}).encode(), "lora_alpha in .* is True"),
        (json.dumps(CONFIG | {"lora_alpha": None}).encode(), "lora_alpha in .* is None"),
        (json.dumps(CONFIG | {"alpha_pattern": 3}).encode(), "alpha_pattern in .* is 3"),
        (json.dumps(CONFIG | {"rank_pattern": {"to_q": "x"}}).encode(), "rank_pattern in .* 'x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_that_does_not_tell_the_alpha_is_refused_by_name(tmp_path, content, says):
    (tmp_path / SIDECAR).write_bytes(content)
    with pytest.raises(UnsupportedLoraError, match=f"adapter_model.safetensors can't be merged: .*{says}"):
        scalings(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_so_is_one_in_the_header(tmp_path, text):
    content = tensors(layers(layer(Q, rank=3)), DIALECTS["diffusers"], with_alpha=False)
    path = save(tmp_path / "a.safetensors", content, {HEADER_KEY: text})
    with pytest.raises(UnsupportedLoraError, match=f"{HEADER_KEY}, can't be read"):
        read_lora(path)


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    (tmp_path / SIDECAR).mkdir()
    assert scalings(tmp_path) == {Q: 1.0, K2: 1.0}


@pytest.mark.parametrize("dialect", sorted(set(DIALECTS) - {"peft"}))
def test_only_pefts_names_go_with_pefts_configuration(tmp_path, dialect):
    (tmp_path / SIDECAR).write_text(json.dumps(CONFIG))
    assert scalings(tmp_path, dialect) == {Q: 1.0, K2: 1.0}


def test_the_files_own_alphas_come_first(tmp_path):
    (tmp_path / SIDECAR).write_text(json.dumps(CONFIG))
    content = tensors(layers(layer(Q, rank=3, alpha=1.5)), DIALECTS["peft"])
    assert read_lora(save(tmp_path / "a.safetensors", content)).layers[Q].alpha == 1.5


# --- interrupts and the rule -----------------------------------------------------------------------------


def test_reading_ends_at_the_layer_where_it_is_interrupted(tmp_path):
    parts = SAMPLES["loha-12x8"].parts
    content = {k: v.clone() for name in (Q, K2, OUT) for k, v in named(name, parts).items()}
    file = save(tmp_path / "a.safetensors", content)
    calls = []

    def interrupt():
        calls.append(len(calls))
        if len(calls) == 2:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        read_lora(file, on_step=interrupt)
    assert calls == [0, 1]
    calls = []
    read_lora(file, on_step=lambda: calls.append(0))
    assert len(calls) == 1 + 3  # a few megabytes and three layers


def test_what_an_interrupt_raises_is_not_called_a_read_error(tmp_path):
    file = save(tmp_path / "a.safetensors", tensors(layers(layer(Q))))

    def broken():
        raise OSError("the window is gone")

    with pytest.raises(OSError, match="the window is gone"):
        read_lora(file, on_step=broken)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.995])
def test_the_kept_energy_is_the_callers(tmp_path, energy):
    file = save(tmp_path / "a.safetensors", named(Q, SAMPLES["loha-12x8"].parts))
    (found,) = read_lora(file, rule=RankRule(energy)).approximations
    assert 1 - found.error**2 >= energy
    if found.rank > 1:
        (fewer,) = read_lora(file, rule=RankRule(1.0, found.rank - 1)).approximations
        assert 1 - fewer.error**2 < energy
