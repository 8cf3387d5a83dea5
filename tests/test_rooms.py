"""Who may import whom (DESIGN: the rooms), read from the source, and that the library needs no front end."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "lib_ziplora"
PROTOCOLS = f"{PACKAGE}.hosts"  # the protocols alone, no adapter


@dataclass(frozen=True)
class Room:
    """What a module may import.

    ``inside``: of this package (a trailing dot: with submodules); ``outside``: other packages.
    """

    inside: tuple[str, ...]
    outside: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def inside(*names: str) -> tuple[str, ...]:
    return tuple(f"{PACKAGE}.{name}" for name in names)


ANY_HOST = (*inside("denoiser", "errors", "names", "origins"), PROTOCOLS)
DIFFUSERS = ("torch", "safetensors", "diffusers", "huggingface_hub")
ROOMS = {
    "errors": Room(()),
    "names": Room(inside("errors")),
    "origins": Room(()),
    "options": Room(inside("errors")),
    "drawing": Room(()),
    "config": Room(inside("options", "errors")),
    "denoiser": Room((), ("torch",)),
    "lora": Room(inside("lora.", "errors", "names"), ("torch", "safetensors", "numpy")),
    "merge": Room(inside("merge.", "lora.", "denoiser", "config", "errors"), ("torch",), inside("lora.file")),
    "job": Room(
        (*inside("job.", "lora.", "merge.", "denoiser", "config", "drawing", "errors"), PROTOCOLS),
        ("torch", "numpy", "PIL"),
    ),
    "hosts": Room(inside("denoiser", "errors", "origins", "hosts.pictures"), ("torch",)),
    "hosts.pictures": Room((), ("PIL",)),
    "hosts.parking": Room((), ("torch",)),
    "hosts.standalone": Room(
        ANY_HOST
        + inside("hosts._diffusers_model", "hosts._diffusers_text", "hosts._diffusers_draw", "hosts.parking"),
        DIFFUSERS,
    ),
    "hosts._diffusers_draw": Room(
        (*ANY_HOST, *inside("hosts._diffusers_model", "hosts._diffusers_text", "lora.", "merge.patch")),
        (*DIFFUSERS, "PIL"),
    ),
    "hosts._diffusers_model": Room(ANY_HOST, DIFFUSERS),
    "hosts._diffusers_text": Room(ANY_HOST, DIFFUSERS),
    "hosts.a1111": Room(
        (*ANY_HOST, *inside("hosts._a1111.", "hosts.parking")),
        ("torch", "modules", "networks", "sgm", "ldm", "fastapi"),
    ),
    "hosts.forge": Room((*ANY_HOST, *inside("hosts._forge.")), ("torch", "modules", "networks", "backend")),
    "ui": Room(
        (*inside("ui.", "config", "drawing", "job.", "errors", "origins"), PROTOCOLS),
        ("gradio", "starlette", "matplotlib", "PIL"),
    ),
    "api": Room(
        (*inside("api.", "config", "job.", "errors", "names", "origins", "overview"), PROTOCOLS),
        ("fastapi", "pydantic", "starlette"),
    ),
    "overview": Room(inside("lora.", "errors", "names")),
    "cli": Room(
        (
            PROTOCOLS,
            *inside("cli.", "config", "job.", "errors", "overview", "hosts.standalone", "ui.serve", "api"),
        ),
        ("tqdm",),
    ),
    "__main__": Room(inside("cli")),
    "": Room(()),
}


def sources() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> Room:
    """The most specific room: ``hosts.a1111`` before ``hosts``, ``lora`` for ``lora.file``."""
    parts = module.split(".")[1:]
    if parts[:1] == ["hosts"] and len(parts) > 1:
        parts[1] = {"_a1111": "a1111", "_forge": "forge"}.get(parts[1], parts[1])
        known = [name for name in ROOMS if name.startswith("hosts.") and parts[1].startswith(name[6:])]
        assert known, f"{module} has no room yet; add it to the table"
        return ROOMS[max(known, key=len)]
    name = parts[0] if parts else ""
    assert name in ROOMS, f"{module} has no room yet; add it to the table"
    return ROOMS[name]


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path: Path) -> list[tuple[str, int]]:
    """Every imported module, absolute, with its line; ``from . import x`` is x where x is a module."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                found.append((submodule if exists(submodule) else source, node.lineno))
    return found


def allowed(module: str, room: Room) -> bool:
    top = module.partition(".")[0]
    if top != PACKAGE:
        return top in sys.stdlib_module_names or top in room.outside
    if module in room.never:
        return False
    if module == PACKAGE:  # its version
        return True
    return any(
        module == name.rstrip(".") or (name.endswith(".") and module.startswith(name)) for name in room.inside
    )


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_module_stays_in_its_room(path: Path) -> None:
    room = room_of(module_name(path))
    wrong = [f"line {line}: {module}" for module, line in imports(path) if not allowed(module, room)]
    assert not wrong, f"{path.relative_to(ROOT)} imports what its room may not: {wrong}"


def test_the_table_notices_a_trespass(tmp_path: Path) -> None:
    merge = ROOMS["merge"]
    assert allowed("lib_ziplora.lora.layer", merge)
    assert not allowed("lib_ziplora.lora.file", merge)
    assert not allowed("lib_ziplora.hosts", merge)
    assert not allowed("gradio", ROOMS["job"])
    assert not allowed("lib_ziplora.hosts.standalone", ROOMS["hosts.a1111"])
    assert not allowed("torch", ROOMS["ui"])


def test_scripts_hold_no_logic() -> None:
    files = sorted((ROOT / "scripts").glob("*.py"))
    for path in files:
        for module, line in imports(path):
            top = module.partition(".")[0]
            known = top == PACKAGE or module in ("modules", "modules.script_callbacks") or top == "__future__"
            assert known, f"{path.name} line {line} imports {module}"


BLOCKER = """
import importlib.abc, sys
BLOCKED = {"gradio", "diffusers", "transformers", "modules", "fastapi", "PIL", "tqdm"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


def test_library_imports_without_any_front_end() -> None:
    """Everything but the tab, the API and the WebUI's adapters, with torch, safetensors and numpy alone."""
    guests = ("lib_ziplora.ui", "lib_ziplora.api", "lib_ziplora.hosts.a1111", "lib_ziplora.hosts.forge")
    names = [module_name(path) for path in sources()]
    names = [
        n
        for n in names
        if not n.startswith((*guests, "lib_ziplora.hosts._a1111")) and n != "lib_ziplora.__main__"
    ]
    result = subprocess.run(
        [sys.executable, "-c", BLOCKER, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["imported", str(len(names))]
