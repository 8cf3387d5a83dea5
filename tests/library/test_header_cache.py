"""Headers are read once, and what they say outlives the program."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_ziplora.errors import LoraFileError
from lib_ziplora.library import header_cache, json_store
from lib_ziplora.library.catalog import catalog, entries_of
from lib_ziplora.library.header_cache import HeaderCache
from lib_ziplora.lora.formats.peft_config import SIDECAR

from ..support.pico_host import PicoHost, module_names, write_kohya


@pytest.fixture(autouse=True)
def every_verdict_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "WORTH_SAVING", 1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers were read."""
    seen: list[str] = []
    inspect = header_cache.inspect_header
    monkeypatch.setattr(
        header_cache, "inspect_header", lambda path: (seen.append(path.name), inspect(path))[1]
    )
    return seen


def lora(folder: Path, name: str = "a", **options: object) -> Path:
    return write_kohya(folder / f"{name}.safetensors", module_names(), **options)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, reads: list[str]) -> None:
    judge, path = HeaderCache(), lora(tmp_path, rank=2)
    assert judge.cached(path) is None
    assert judge.inspect(path) == judge.inspect(path) == judge.cached(path)
    assert reads == [path.name]
    lora(tmp_path, rank=5)
    assert judge.cached(path) is None and judge.inspect(path).ranks == (5,)


def test_a_configuration_that_comes_changes_or_goes_is_read_anew(tmp_path: Path, reads: list[str]) -> None:
    """PEFT's, beside the file: what it says decides whether the file can be merged."""
    path, file = tmp_path / "a.safetensors", tmp_path / "data" / "catalog.json"
    name = "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}, path)
    config, reasons = tmp_path / SIDECAR, []
    for text in (None, '{"peft_type": "LORA"}', '{"peft_type": "ADALORA"}', '{"peft_type": "LOHA"}', None):
        if text is None:
            config.unlink(missing_ok=True)
        else:
            config.write_text(text)
        cache = HeaderCache(file)
        reasons.append(cache.inspect(path).reason)
        assert cache.cached(path) == cache.inspect(path) == HeaderCache().inspect(path)
        cache.save()
    assert ["ADALORA" in reason for reason in reasons] == [False, False, True, False, False]
    assert HeaderCache(file).cached(path) is not None


def test_a_damaged_file_is_read_once_too(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"PK\x03\x04")
    judge = HeaderCache()
    for _ in range(3):
        with pytest.raises(LoraFileError, match="pickle"):
            judge.inspect(path)
    assert reads == [path.name]
    lora(tmp_path)
    assert judge.inspect(path).base == "sdxl"


def test_infos_outlive_the_program(tmp_path: Path, reads: list[str]) -> None:
    path, file = lora(tmp_path, metadata={"ss_output_name": "my_dog"}), tmp_path / "data" / "catalog.json"
    first = HeaderCache(file)
    found = first.inspect(path)
    first.save()
    assert HeaderCache(file).inspect(path) == found and found.prompt == "my dog"
    assert reads == [path.name]
    assert [one.name for one in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("damage", ["", "{", "[]", "[" * 100_000, '{"format": 1}', None])
def test_a_damaged_or_foreign_list_is_made_anew(tmp_path: Path, damage: str | None) -> None:
    path, file = lora(tmp_path), tmp_path / "catalog.json"
    first = HeaderCache(file)
    first.inspect(path)
    first.save()
    whole = file.read_text(encoding="utf-8")
    if damage is None:
        content = json.loads(whole)
        content["files"][str(path)][1].pop("ranks")
        damage = json.dumps(content)
    file.write_text(damage, encoding="utf-8")
    again = HeaderCache(file)
    assert again.cached(path) is None
    again.inspect(path)
    again.save()
    assert file.read_text(encoding="utf-8") == whole


def test_another_release_judges_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, file = lora(tmp_path), tmp_path / "catalog.json"
    first = HeaderCache(file)
    first.inspect(path)
    first.save()
    monkeypatch.setattr(header_cache, "__version__", "99")
    assert HeaderCache(file).cached(path) is None


def test_a_folder_that_can_not_be_written_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    judge = HeaderCache(tmp_path / "file" / "catalog.json")
    judge.inspect(lora(tmp_path))
    judge.save()
    assert (tmp_path / "file").read_text() == "no folder"


def test_without_patience_what_is_not_known_is_pending(tmp_path: Path, reads: list[str]) -> None:
    host = PicoHost(tmp_path)
    lora(tmp_path, "a")
    catalog(host)
    lora(tmp_path, "b")
    known, pending = entries_of(host.loras(), host, 0)
    assert (known.pending, known.rank) == (False, 2)
    assert pending.pending and pending.usable and pending.size > 0
    assert reads == ["a.safetensors"]
    assert not any(entry.pending for entry in entries_of(host.loras(), host, math.inf))


def test_only_a_host_with_a_place_has_things_kept(tmp_path: Path) -> None:
    host = PicoHost(tmp_path)
    assert json_store.data_folder(host) is None
    host.data_folder = lambda: tmp_path / "data"
    assert json_store.data_folder(host) == tmp_path / "data"
