"""The disk cache and the loading of generated modules."""

from __future__ import annotations

import os
import stat
import threading
import traceback
from pathlib import Path

import pytest

from recur.runtime import cache, load


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path / "cache"))
    load._loaded.clear()
    return tmp_path / "cache"


def test_a_stored_module_is_a_readable_file_inside_the_cache(folder: Path) -> None:
    path = cache.store_module("gla", "x = 1\n")
    assert path.read_text() == "x = 1\n"
    assert path.is_relative_to(folder) and path.name.startswith("gla_") and path.suffix == ".py"
    assert os.listdir(path.parent) == [path.name]


def test_the_same_text_is_written_once() -> None:
    path = cache.store_module("gla", "x = 1\n")
    before = path.stat()
    assert cache.store_module("gla", "x = 1\n") == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    assert cache.store_module("gla", "x = 2\n") != path


@pytest.mark.parametrize("damage", [b"", b"x = ", b"\xff\xfe", b"x = 1\nimport os\n"])
def test_a_damaged_file_is_a_miss_and_is_replaced(damage: bytes) -> None:
    path = cache.store_module("gla", "x = 1\n")
    path.write_bytes(damage)
    assert load.load_module("gla", "x = 1\n").x == 1
    assert path.read_text() == "x = 1\n"


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "", "a b", "..", "x" * 500, "é", "a\0b", "1st"])
def test_names_cannot_leave_the_folder(folder: Path, name: str) -> None:
    path = cache.store_module(name, "x = 1\n")
    assert path.resolve().parent == cache.module_dir().resolve()
    assert path.stem.isidentifier() and path.stem.isascii()
    assert [p for p in folder.parent.rglob("*.py")] == [path]


def test_a_link_in_the_cache_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim.py"
    victim.write_text("precious")
    path = cache.module_path("gla", "x = 1\n")
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    cache.store_module("gla", "x = 1\n")
    assert victim.read_text() == "precious" and not path.is_symlink()


def test_an_interrupted_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        cache.store_module("gla", "x = 1\n")
    assert os.listdir(cache.module_dir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_clear_error(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(cache.CacheError, match="RECUR_CACHE_DIR"):
        cache.store_module("gla", "x = 1\n")


def test_a_file_in_the_folders_place_is_a_clear_error(folder: Path) -> None:
    folder.write_text("not a folder")
    with pytest.raises(cache.CacheError, match="RECUR_CACHE_DIR"):
        cache.store_module("gla", "x = 1\n")


def test_concurrent_writers_agree() -> None:
    text = "x = 1\n" * 2000
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(cache.store_module("gla", text))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and paths[0].read_text() == text
    assert os.listdir(paths[0].parent) == [paths[0].name]


def test_tracebacks_point_into_the_file() -> None:
    module = load.load_module("broken", "def f():\n    return 1 / 0  # the culprit\n")
    with pytest.raises(ZeroDivisionError) as caught:
        module.f()
    shown = "".join(traceback.format_exception(caught.value))
    assert str(cache.module_dir()) in shown and "# the culprit" in shown


def test_a_module_runs_once_and_again_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    first = load.load_module("gla", "x = object()\n")
    assert load.load_module("gla", "x = object()\n") is first
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    second = load.load_module("gla", "x = object()\n")
    assert second is not first and second.__name__ != first.__name__


def test_a_module_that_fails_is_not_kept() -> None:
    for _ in range(2):
        with pytest.raises(NameError):
            load.load_module("gla", "x = missing\n")


def test_the_default_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECUR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache.cache_dir() == Path("/somewhere/recur")
