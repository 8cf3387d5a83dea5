"""Scripts hold no logic, and the library imports without any front end; ``lint-imports`` keeps the layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "lib_ziplora"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


def test_scripts_hold_no_logic() -> None:
    for path in sorted((ROOT / "scripts").glob("*.py")):
        for module in imported(path):
            top = module.partition(".")[0]
            known = top == PACKAGE or module in ("modules", "modules.script_callbacks") or top == "__future__"
            assert known, f"{path.name} imports {module}"


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
    webuis = ("a1111", "_a1111", "_webui", "forge", "_forge", "reforge")
    guests = ("lib_ziplora.ui", "lib_ziplora.api", *(f"lib_ziplora.hosts.{name}" for name in webuis))
    names = [module_name(path) for path in sorted((ROOT / PACKAGE).rglob("*.py"))]
    names = [n for n in names if not n.startswith(guests) and n != "lib_ziplora.__main__"]
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
