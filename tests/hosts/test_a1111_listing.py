"""The WebUI's LoRAs are listed whole, whatever its Lora extension does meanwhile; its checkpoint's own size."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lib_ziplora.errors import HostError, LoraFileError, OutputError
from lib_ziplora.hosts import KnowsSize, ShowsCards
from lib_ziplora.hosts._a1111 import loras as a1111_loras
from lib_ziplora.hosts._webui import loras
from lib_ziplora.hosts._webui.host import SDXL_SIZE
from lib_ziplora.hosts.a1111 import A1111Host, A1111Session

NAMES = ["cat", "dog", "ink"]
SECONDS = 30


class Extension(ModuleType):
    """The built-in Lora extension: it empties its table, then fills it file by file."""

    def __init__(self, folder: Path) -> None:
        super().__init__("networks")
        self.folder, self.available_networks = folder, {}
        self.available_network_aliases: dict[str, Any] = {}
        self.forbidden_network_aliases: dict[str, int] = {}
        self.available_network_hash_lookup: dict[str, Any] = {}
        self.networks_in_memory: dict[str, Any] = {}
        self.network = SimpleNamespace(NetworkOnDisk=self.on_disk)
        self.looked_at: list[str] = []
        self.emptied, self.go_on = threading.Event(), threading.Event()

    def on_disk(self, name: str, file: str) -> SimpleNamespace:
        """An entry, whose hash is the file's content, and its alias the part before a stop."""
        content = Path(file).read_text()
        entry = SimpleNamespace(
            name=name, alias=name.split(".")[0], filename=file, hash=content, shorthash=content
        )
        if content:
            self.available_network_hash_lookup[content] = entry
        return entry

    def list_available_networks(self) -> None:
        self.available_networks.clear()
        self.emptied.set()
        assert self.go_on.wait(SECONDS)
        for file in sorted(self.folder.glob("*.safetensors")):
            self.available_networks[file.stem] = SimpleNamespace(filename=str(file))


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Extension]:
    for name in NAMES:
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    found = Extension(tmp_path)

    def walk_files(folder: str, endings: tuple[str, ...]) -> list[str]:
        return [str(file) for file in sorted(Path(folder).glob("*")) if file.suffix in endings]

    options = SimpleNamespace(lora_dir=str(tmp_path), lyco_dir_backcompat=None)
    shared: Any = ModuleType("modules.shared")
    shared.cmd_opts, shared.walk_files = options, walk_files
    paths: Any = ModuleType("modules.paths")
    modules: Any = ModuleType("modules")
    modules.shared, modules.paths, paths.models_path = shared, paths, str(tmp_path)
    processing: Any = SimpleNamespace(cached_c=[], cached_uc=[], cached_hr_c=[], cached_hr_uc=[])
    modules.processing = SimpleNamespace(
        StableDiffusionProcessing=processing, StableDiffusionProcessingTxt2Img=processing
    )
    pages = [
        SimpleNamespace(
            name=name,
            lister=SimpleNamespace(
                update_file_entry=looked_at.append, reset=lambda seen=looked_at: seen.append("")
            ),
        )
        for name, looked_at in (("lora", found.looked_at), ("checkpoints", []))
    ]
    modules.ui_extra_networks = SimpleNamespace(extra_pages=pages)
    for name, module in {"modules": modules, "modules.shared": shared, "networks": found}.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield found
    found.go_on.set()


def test_a_listing_while_the_extension_lists_anew_is_whole(extension: Extension) -> None:
    listing = threading.Thread(target=extension.list_available_networks)
    listing.start()
    assert extension.emptied.wait(SECONDS)
    assert [lora.name for lora in loras.installed()] == NAMES
    assert [loras.resolve(name).stem for name in NAMES] == NAMES
    with pytest.raises(LoraFileError, match="Did you mean cat"):
        loras.resolve("cats")
    assert extension.available_networks == {}  # so it was listed by us, not by the extension
    extension.go_on.set()
    listing.join(SECONDS)
    assert list(loras.known(extension)) == NAMES


def test_a_file_that_has_just_been_written_is_listed(extension: Extension) -> None:
    (extension.folder / "new.safetensors").write_bytes(b"")
    (extension.folder / "cat.safetensors").unlink()
    assert [lora.name for lora in loras.installed()] == ["dog", "ink", "new"]


def test_neos_further_folders_are_listed_and_new_files_go_into_the_first(
    extension: Extension, tmp_path_factory: pytest.TempPathFactory
) -> None:
    more = tmp_path_factory.mktemp("more")
    (more / "far.safetensors").write_bytes(b"")
    sys.modules["modules.shared"].cmd_opts.lora_dirs = [str(more)]
    assert [lora.name for lora in loras.installed()] == sorted([*NAMES, "far"])
    assert loras.output_path("new").parent == extension.folder


def test_files_of_one_name_are_told_apart_and_the_tags_own_has_the_plain_name(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (extension.folder / place / "cat.safetensors" for place in ("one", "two"))
    for path in (one, two, extension.folder / "cat.pt", extension.folder / "one" / "old.pt"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (extension.folder / "linked").symlink_to(two.parent, target_is_directory=True)

    def walk_files(
        folder: str, endings: tuple[str, ...]
    ) -> list[str]:  # as the WebUI's: folders sorted, links followed
        walked = sorted(os.walk(folder, followlinks=True))
        return [os.path.join(root, name) for root, _, names in walked for name in sorted(names)]  # noqa: PTH118

    monkeypatch.setattr(sys.modules["modules.shared"], "walk_files", walk_files)
    found = {lora.name: lora for lora in loras.installed()}
    last, first = two, extension.folder / "cat.safetensors"
    folder = extension.folder.name
    assert {name: lora.path for name, lora in found.items() if lora.path.stem == "cat"} == {
        "cat": last,
        "one/cat": one,
        f"{folder}/cat": first,
    }
    assert set(found) - {"cat", "one/cat", f"{folder}/cat"} == {"dog", "ink", "old"}
    assert [loras.resolve(name) for name in ("cat", "one/cat", f"{folder}/cat")] == [last, one, first]
    for name in ("one/cat", f"{folder}/cat", "cat"):
        said = found[name].remark
        assert f"3 files are named cat; <lora:cat:1> means {last}. {name} is {found[name].path}." == said
    assert found["dog"].remark == ""
    loras.require_tag("cat")
    with pytest.raises(HostError, match=r"can't draw with .*one.*Rename one of the two"):
        loras.require_tag("one/cat")
    with pytest.raises(OutputError, match="means the LoRA"):
        loras.output_path("cat")


def test_the_list_never_shrinks_while_merges_are_written(extension: Extension) -> None:
    extension.go_on.set()
    extension.list_available_networks()
    seen: list[int] = []
    written = threading.Event()

    def poll() -> None:
        while not written.is_set():
            seen.append(len(loras.known(extension)))

    polling = threading.Thread(target=poll)
    polling.start()
    for number in range(10):
        file = extension.folder / f"merge {number}.safetensors"
        file.write_bytes(b"")
        a1111_loras.refresh(file, None)
    written.set()
    polling.join(SECONDS)
    assert seen == sorted(seen) and min(seen) >= len(NAMES)
    assert len(loras.known(extension)) == len(NAMES) + 10
    assert extension.available_network_aliases["merge 9"].filename.endswith("merge 9.safetensors")


def test_the_pane_looks_again_at_what_was_written(extension: Extension) -> None:
    file, preview = (extension.folder / f"cat.{end}" for end in ("safetensors", "preview.png"))
    preview.write_bytes(b"")
    a1111_loras.refresh(file, None)
    A1111Host().card_changed(preview)
    assert extension.looked_at == [str(file), str(preview)]
    assert isinstance(A1111Host(), ShowsCards)


def test_a_file_that_was_replaced_is_found_by_its_new_hash_alone(extension: Extension) -> None:
    file = extension.folder / "cat.safetensors"
    for content in ("old", "new"):
        file.write_text(content)
        a1111_loras.refresh(file, None)
    assert list(extension.available_network_hash_lookup) == ["new"]
    assert extension.available_network_hash_lookup["new"] is extension.available_networks["cat"]
    assert not extension.forbidden_network_aliases


def test_a_file_that_is_gone_leaves_the_list_and_no_other_does(extension: Extension) -> None:
    for name in NAMES:
        file = extension.folder / f"{name}.safetensors"
        file.write_text(f"of {name}")
        a1111_loras.refresh(file, None)
    extension.networks_in_memory["cat"] = SimpleNamespace(network_on_disk=extension.available_networks["cat"])
    (extension.folder / "cat.safetensors").unlink()
    a1111_loras.refresh(extension.folder / "cat.safetensors", None)
    for table in (extension.available_networks, extension.available_network_aliases):
        assert list(table) == ["dog", "ink"]
    assert list(extension.available_network_hash_lookup) == ["of dog", "of ink"]
    assert not extension.networks_in_memory and extension.looked_at[-1] == ""
    a1111_loras.refresh(extension.folder / "elsewhere" / "dog.safetensors", None)
    assert "dog" in extension.available_networks


def test_an_alias_of_two_files_means_neither(extension: Extension) -> None:
    for name in ("one.first", "one.second"):
        file = extension.folder / f"{name}.safetensors"
        file.write_bytes(b"")
        a1111_loras.refresh(file, None)
    assert list(extension.forbidden_network_aliases) == ["one"]


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ({"modelspec.resolution": "128x128"}, 128),
        ({"modelspec.resolution": "1024X1024"}, 1024),
        ({"modelspec.resolution": "768"}, 768),
        ({"modelspec.resolution": "832x1216"}, None),
        ({"modelspec.resolution": "100x100"}, None),
        ({"modelspec.resolution": "65536x65536"}, None),
        ({"modelspec.resolution": "x"}, None),
        ({"modelspec.resolution": None}, None),
        ({"modelspec.resolution": 128}, 128),
        ({}, None),
        (None, None),
    ],
    ids=str,
)
def test_the_checkpoints_metadata_say_its_size(
    monkeypatch: pytest.MonkeyPatch, metadata: Any, size: int | None
) -> None:
    entry: Any = SimpleNamespace(metadata=metadata)
    monkeypatch.setattr("lib_ziplora.hosts._a1111.model.current_entry", lambda: entry)
    host = A1111Host()
    assert isinstance(host, KnowsSize) and host.picture_size() == size
    session = A1111Session(denoiser=None, identity=SimpleNamespace(entry=entry))  # type: ignore[arg-type]
    assert session.native_size == (size or SDXL_SIZE)
