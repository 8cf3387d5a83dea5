"""Where each host lets us keep small files."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from lib_ziplora.hosts import KeepsData
from lib_ziplora.hosts.a1111 import A1111Host
from lib_ziplora.hosts.standalone import StandaloneHost


def test_standalone_keeps_them_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = StandaloneHost(None, device="cpu")
    assert isinstance(host, KeepsData)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert host.data_folder() == tmp_path / "ziplora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert host.data_folder() == tmp_path / ".cache" / "ziplora"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("has_cache", [True, False])
def test_the_webui_keeps_them_beside_its_own_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_cache: bool
) -> None:
    package = types.ModuleType("modules")
    package.paths = types.SimpleNamespace(data_path=str(tmp_path))  # type: ignore[attr-defined]
    own = {"cache_dir": str(tmp_path / "elsewhere")} if has_cache else {}
    package.cache = types.SimpleNamespace(**own)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", package)
    host = A1111Host()
    assert isinstance(host, KeepsData)
    assert host.data_folder() == tmp_path / ("elsewhere" if has_cache else "cache") / "ziplora"
