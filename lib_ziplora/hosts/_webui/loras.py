"""The LoRAs of a WebUI: listing, names, files, cards; Automatic1111 and its forks keep them alike."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from ...errors import HostError, LoraFileError, OutputError
from ...names import validate_output
from .. import InstalledLora
from ..listing import SUFFIX as SUFFIX
from ..listing import listed

EXTENSIONS = (".safetensors", ".pt", ".ckpt")


def extension() -> Any | None:
    """The built-in Lora extension's ``networks`` module, or None when it is switched off."""
    try:
        import networks  # type: ignore[import-not-found]
    except ImportError:
        return None
    return networks if hasattr(networks, "available_networks") else None


def folders() -> list[Path]:
    """Where LoRAs are looked for, in Forge Neo also in its ``--lora-dirs``; new ones go into the first."""
    from modules import paths, shared

    options = shared.cmd_opts
    first = getattr(options, "lora_dir", None) or os.path.join(paths.models_path, "Lora")  # noqa: PTH118
    second, more = (getattr(options, name, None) for name in ("lyco_dir_backcompat", "lora_dirs"))
    return [Path(folder).absolute() for folder in (first, second, *(more or ())) if folder]


def files() -> list[Path]:
    """Every LoRA file in the WebUI's folders, in its order (of equal stems the last one counts)."""
    from modules import shared

    return [Path(name) for folder in folders() for name in shared.walk_files(str(folder), EXTENSIONS)]


def known(networks: Any) -> dict[str, Path]:
    """Name -> file of what the extension has listed so far."""
    return {name: Path(entry.filename) for name, entry in list(networks.available_networks.items())}


def installed() -> list[InstalledLora]:
    """The installed LoRAs, freshly listed, sorted by name; of one stem, the last has it, as in ``<lora:name:1>``.

    The folders are walked here, since the extension empties its own table before it lists anew, and
    whoever reads it meanwhile finds half of it. A second ``.pt`` of a name is passed over.
    """
    every = [path for path in files() if path.is_file()]
    last = {path.stem: path for path in every}
    listable = [path for path in every if path.suffix == SUFFIX or last[path.stem] == path]
    return listed(listable, lambda paths: last[paths[0].stem])


def resolve(name: str) -> Path:
    """The file of an installed LoRA; a path is no name.

    Raises:
        LoraFileError: no LoRA of that name.
    """
    networks = extension()
    path = known(networks).get(name) if networks is not None else None
    if path is not None and path.is_file():
        return path
    found = {lora.name: lora for lora in installed()}
    if name in found:
        return found[name].path
    near = difflib.get_close_matches(name, found, n=3)
    advice = (
        f"Did you mean {', '.join(near)}?" if near else "Press the refresh button and choose from the list."
    )
    raise LoraFileError(f"There is no LoRA named {name!r} in the WebUI. {advice}")


def require_tag(name: str) -> None:
    """Raise HostError where ``<lora:name:1>`` means another file of that name, LoraFileError where there is none."""
    path = resolve(name)
    if name != path.stem:
        raise HostError(
            f"The WebUI can't draw with {path}, for <lora:{path.stem}:1> means {resolve(path.stem)}. Rename one of "
            "the two and refresh the list."
        )


def output_path(name: str) -> Path:
    """Where a merged LoRA of that name goes: below the WebUI's LoRA folder.

    Raises:
        OutputError: a path elsewhere, a name that a prompt can't hold, or one that a LoRA elsewhere has.
    """
    path = validate_output(name)
    target = folders()[0] / f"{path}{SUFFIX}"
    for other in files():
        if other.stem.casefold() == path.name.casefold() and other.absolute() != target:
            raise OutputError(
                f"The name {path.name} means the LoRA {other} already, wherever the new file lies. Choose another name."
            )
    return target


def listed_again(networks: Any, path: Path) -> None:
    """Make a file that was just written known to list and pane, or forget one that is gone.

    Conditionings made with an older one are forgotten too.
    """
    if path.is_file():
        _list(networks, path)
    else:
        _forget(networks, path)
    card_changed(path)
    _clear_conditioning_caches()


def _list(networks: Any, path: Path) -> None:
    """Put one file on the extension's list.

    The extension's own listing empties the list first, and whoever looks meanwhile finds half of it.
    """
    name = path.stem
    before = networks.available_networks.get(name)
    entry = networks.network.NetworkOnDisk(name, str(path))
    if before is not None and before.hash != entry.hash:
        networks.available_network_hash_lookup.pop(before.shorthash, None)
    aliases = networks.available_network_aliases
    if aliases.get(entry.alias, entry).name != name:
        networks.forbidden_network_aliases[entry.alias.lower()] = 1
    networks.available_networks[name] = aliases[name] = aliases[entry.alias] = entry


def _forget(networks: Any, path: Path) -> None:
    """Take one file off the extension's list; the others are never off it."""
    entry = networks.available_networks.get(path.stem)
    if entry is None or Path(entry.filename).absolute() != path.absolute():
        return
    tables = (
        networks.available_networks,
        networks.available_network_aliases,
        networks.available_network_hash_lookup,
    )
    for table in tables:
        for name in [name for name, one in list(table.items()) if one is entry]:
            table.pop(name, None)


def card_changed(path: Path) -> None:
    """Have the LoRA pane look at a file again, as the WebUI does after it has written one itself."""
    from modules import ui_extra_networks

    for page in ui_extra_networks.extra_pages:
        if page.name == "lora" and path.exists():
            page.lister.update_file_entry(str(path))
        elif page.name == "lora":
            page.lister.reset()


def _clear_conditioning_caches() -> None:
    from modules import processing

    base, txt2img = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    for cache in (base.cached_c, base.cached_uc, txt2img.cached_hr_c, txt2img.cached_hr_uc):
        cache[:] = [None] * len(cache)
