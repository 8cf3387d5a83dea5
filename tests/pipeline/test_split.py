"""The subject's and the style's part as files of their own."""

from __future__ import annotations

import pytest
import torch

from lib_ziplora.config import MergeSettings, settings_from
from lib_ziplora.errors import ConfigError, OutputError
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import write_unnamed
from lib_ziplora.pipeline import write as writing
from lib_ziplora.pipeline.merge import run
from lib_ziplora.pipeline.prepare import prepare

from ..support.pico_host import WIDTH
from ..support.small_merges import NORM, add, merged, pico_host, request


@pytest.fixture()
def host(tmp_path):
    return pico_host(tmp_path)


@pytest.mark.parametrize("method", ["direct", "ziplora"])
def test_the_parts_at_one_and_one_are_the_merged_file(host, method):
    add(host, "a", {f"{NORM}.w_norm": torch.randn(WIDTH), f"{NORM}.b_norm": torch.randn(WIDTH)})
    report = run(request("a", method=method, split=True, weight=(0.7, 0.4)), host)
    assert report.split == ("merged_subject", "merged_style")
    assert [path.stem for path in host.refreshed] == [*report.split, "merged"]
    subject, style = (read_lora(host.folder / f"{name}.safetensors") for name in report.split)
    whole = merged(host)
    assert set(subject.layers) | set(style.layers) == set(whole.layers)
    for name, layer in whole.layers.items():
        parts = [lora.layers[name].delta() for lora in (subject, style) if name in lora.layers]
        torch.testing.assert_close(sum(parts), layer.delta(), rtol=1e-5, atol=1e-5)
    assert set(subject.extras) == set(whole.extras) and not style.extras
    assert subject.metadata["ss_output_name"] == "merged_subject"


@pytest.mark.parametrize("taken", ["merged_style", "merged_subject"])
def test_nothing_is_written_when_a_part_is_there_already(host, taken):
    (host.folder / f"{taken}.safetensors").write_bytes(b"mine")
    before = sorted(host.folder.iterdir())
    with pytest.raises(OutputError, match=f"{taken}.safetensors exists already"):
        prepare(request(split=True), host)
    with pytest.raises(OutputError, match=f"{taken}.safetensors exists already"):
        run(request(split=True), host)
    assert sorted(host.folder.iterdir()) == before


def test_the_parts_are_gone_again_when_the_merged_file_fails(host, monkeypatch):
    def fail(temporary, file, *rest):
        if file.stem == "merged":
            raise OutputError("no")
        return write_unnamed(temporary, file, *rest)

    monkeypatch.setattr(writing, "write_unnamed", fail)
    before = sorted(host.folder.iterdir())
    with pytest.raises(OutputError, match="no"):
        run(request(split=True), host)
    assert sorted(host.folder.iterdir()) == before


def test_a_lower_rank_and_split_contradict_each_other():
    with pytest.raises(ConfigError, match="rank exact, or no split"):
        MergeSettings(split=True, rank="64")


@pytest.mark.parametrize(("value", "meant"), [(True, True), ("false", False), ("true", True), (0, False)])
def test_split_from_loose_values(value, meant):
    assert settings_from({"split": value}).split is meant
    with pytest.raises(ConfigError, match="split must be true or false"):
        settings_from({"split": "perhaps"})
