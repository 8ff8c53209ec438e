"""The registry: finds systems by walking the folders, and reads their cards as data, without importing torch.

A system is a folder ``FAMILY/SLUG`` (hyphens of the slug are underscores in the folder's name) with
``card.toml``, ``method.py``, ``experiment.py`` and ``README.md``. Nothing is registered by hand: adding a
folder adds a system.
"""

from __future__ import annotations

import importlib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.experiment.base import Experiment

FAMILIES = (
    "classification",
    "compression",
    "vision",
    "segment_anything",
    "vision_language",
    "language",
    "retrieval",
    "diffusion",
    "scenes3d",
    "tokenizers",
    "cross_modal",
    "graphs",
    "dataset",
    "control",
    "theory",
)
FAITHFUL = ("from code", "from paper", "reconstructed")
_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_HOME = Path(__file__).resolve().parent
_TEMPLATE = _HOME / "template"
_FIELDS: dict[str, tuple[type, bool]] = {  # field -> (type, required)
    "slug": (str, True),
    "title": (str, True),
    "year": (int, True),
    "venue": (str, False),
    "family": (str, True),
    "task": (str, True),
    "idea": (str, True),
    "formula": (str, False),
    "paper": (str, False),
    "official_code": (str, False),
    "parts": (list, True),
    "limits": (list, True),
    "faithful": (str, True),
    "released_versus_paper": (list, False),
    "findings": (dict, False),
    "unrecorded": (list, False),
}


@dataclass(frozen=True)
class Card:
    """What card.toml says about a system.

    Attributes:
        slug, title, year, venue, family, task: what it is and where it is from.
        idea: two or three sentences; ``formula``: the heart of it as text.
        paper, official_code: where they are, or that there is none.
        parts: what it is built from. ``limits``: when not to use it, what was not shown.
        faithful: ``from code``, ``from paper`` or ``reconstructed``.
        released_versus_paper: where the official code departs from the paper, and what is the default here.
        findings: text of a claim -> why it came out as it did, as far as it was sought; shown with the verdict.
            A table of that kind under the name of an experiment (``[findings.few_labels]``) is about it alone.
        unrecorded: names of experiments whose full size has not been run yet; all others are in the ledger.
        folder, module: where it lives.
    """

    slug: str
    title: str
    year: int
    family: str
    task: str
    idea: str
    parts: tuple[str, ...]
    limits: tuple[str, ...]
    faithful: str
    venue: str = ""
    formula: str = ""
    paper: str = ""
    official_code: str = ""
    released_versus_paper: tuple[str, ...] = ()
    findings: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    unrecorded: tuple[str, ...] = ()
    folder: Path = Path()
    module: str = ""


def findings_of(findings: Mapping[str, str | Mapping[str, str]], experiment: str) -> dict[str, str]:
    """Text of a claim -> finding, as they hold for one experiment: those about it alone go before those about all."""
    general = {claim: text for claim, text in findings.items() if isinstance(text, str)}
    own = findings.get(experiment, {})
    return general if isinstance(own, str) else {**general, **own}


def systems(root: str | Path | None = None, *, family: str = "", task: str = "") -> list[Card]:
    """The cards of all systems under ``root`` (the package's own by default), by family and slug."""
    home = Path(root) if root is not None else _HOME
    if family and family not in FAMILIES:
        raise UserError("family", family, FAMILIES)
    cards = [read_card(path) for path in sorted(home.glob("*/*/card.toml"))]
    slugs = Counter(card.slug for card in cards)
    for slug, count in slugs.items():
        if count > 1:
            raise UserError("slug", slug, "a slug that no other system has", f"{count} folders have it")
    if task and cards and not any(card.task == task for card in cards):
        raise UserError("task", task, sorted({card.task for card in cards}))
    return [card for card in cards if (not family or card.family == family) and (not task or card.task == task)]


def card(slug: str, root: str | Path | None = None) -> Card:
    """The card of one system, read alone."""
    home = Path(root) if root is not None else _HOME
    found = sorted(home.glob(f"*/{slug.replace('-', '_')}/card.toml")) if _SLUG.fullmatch(slug) else []
    if not found:
        raise UserError(
            "system",
            slug,
            [path.parent.name.replace("_", "-") for path in sorted(home.glob("*/*/card.toml"))],
        )
    return read_card(found[0])


def read_card(path: str | Path) -> Card:
    """Read and check a card; every error names the file and the key."""
    file = Path(path).resolve()
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"card {file}", str(error), "a TOML file") from error
    for key in data:
        if key not in _FIELDS:
            raise UserError(f"card {file}: key", key, _FIELDS)
    for key, (kind, required) in _FIELDS.items():
        if key not in data:
            if required:
                raise UserError(f"card {file}: {key}", "", f"a {kind.__name__}; the key is required")
            continue
        _check_value(file, key, data[key], kind, required)
    _check_place(file, data)
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    folder = file.parent
    module = f"limbeck.systems.{folder.parent.name}.{folder.name}" if folder.parents[1] == _HOME else folder.name
    return Card(**{**data, **lists}, folder=folder, module=module)


def experiments(slug: str, root: str | Path | None = None) -> dict[str, type[Experiment]]:
    """The experiments of a system by name, the main one first. Imports experiment.py, and so torch."""
    found = card(slug, root)
    module = importlib.import_module(f"{found.module}.experiment")
    known = getattr(module, "EXPERIMENTS", None)
    if not isinstance(known, dict) or not known:
        raise UserError(
            f"EXPERIMENTS of {module.__name__}",
            known,
            "a mapping of names to Experiment classes, the main one first",
        )
    return dict(known)


def experiment_reference(slug: str, name: str = "", root: str | Path | None = None) -> str:
    """``package.module:NAME`` of an experiment, as the runner takes it; the main one by default."""
    known = experiments(slug, root)
    if name and name not in known:
        raise UserError(f"experiment of {slug}", name, known)
    return f"{card(slug, root).module}.experiment:{name or next(iter(known))}"


def verdicts(
    slug: str, root: str | Path | None = None, ledger_root: str | Path | None = None
) -> dict[str, dict[str, int]]:
    """Entry of the ledger -> how many claims have which verdict; empty where nothing is recorded yet."""
    from limbeck.experiment.base import VERDICTS
    from limbeck.experiment.ledger import read

    found = card(slug, root)
    counted = {}
    for name, entry in read(found.family, slug, ledger_root)["entries"].items():
        counts = Counter(claim["verdict"] for claim in entry["claims"])
        counted[name] = {verdict: counts[verdict] for verdict in VERDICTS}
    return counted


def new_system(slug: str, family: str, root: str | Path) -> list[Path]:
    """Write a small working system and its test, to start from; returns the files.

    In a checkout of Limbeck (``root`` holds src/limbeck/systems) they go to its rooms for systems and tests.
    In any other folder they become a package of their own, ``root/SLUG``, with the test inside.
    """
    if not _SLUG.fullmatch(slug):
        raise UserError("slug", slug, "small letters, digits and single hyphens, beginning with a letter: my-method")
    if family not in FAMILIES:
        raise UserError("family", family, FAMILIES)
    home, folder_name = Path(root), slug.replace("-", "_")
    rooms = home / "src" / "limbeck" / "systems"
    if rooms.is_dir():
        taken = sorted(rooms.glob(f"*/{folder_name}"))
        folder, test = (
            rooms / family / folder_name,
            home / "tests" / "systems" / family / f"test_{folder_name}.py",
        )
        package = f"limbeck.systems.{family}.{folder_name}"
    else:
        folder = home / folder_name
        taken, test, package = (
            [folder] if folder.exists() else [],
            folder / f"test_{folder_name}.py",
            folder_name,
        )
    if taken or test.exists():
        raise UserError("slug", slug, "one that is not taken", f"{taken[0] if taken else test} exists")
    words = {
        "slug": slug,
        "family": family,
        "package": package,
        "folder": folder_name,
        "Name": "".join(part.capitalize() for part in slug.split("-")),
    }
    words["run"] = slug if rooms.is_dir() else f"{package}.experiment:few_labels"
    if rooms.is_dir():
        for parent in (folder.parent, folder):
            parent.mkdir(parents=True, exist_ok=True)
            (parent / "__init__.py").touch()
    targets = {"card.toml": folder, "method.py": folder, "experiment.py": folder, "README.md": folder}
    written = [_fill(f"{name}.tmpl", place / name, words) for name, place in targets.items()]
    if not rooms.is_dir():
        (folder / "__init__.py").touch()
    return [*written, _fill("test_system.py.tmpl", test, words)]


def _fill(template: str, target: Path, words: Mapping[str, str]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = Template((_TEMPLATE / template).read_text(encoding="utf-8")).substitute(words)
    target.write_text(text, encoding="utf-8")
    return target


def _check_value(file: Path, key: str, value: Any, kind: type[Any], required: bool) -> None:
    where = f"card {file}: {key}"
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(where, value, f"a {kind.__name__}")
    inner = value if kind is list else _texts(value) if kind is dict else ()
    if any(not isinstance(item, str) or not item.strip() for item in inner):
        raise UserError(where, value, "texts, none of them empty")
    if required and kind is str and not value.strip():
        raise UserError(where, "", "a text")
    if key == "parts" and not value:
        raise UserError(where, "[]", "at least one part")


def _texts(table: Mapping[str, Any]) -> list[Any]:
    """The values of a table, and of the tables in it."""
    return [text for value in table.values() for text in (value.values() if isinstance(value, dict) else (value,))]


def _check_place(file: Path, data: Mapping[str, Any]) -> None:
    if not _SLUG.fullmatch(data["slug"]):
        raise UserError(f"card {file}: slug", data["slug"], "small letters, digits and single hyphens")
    if data["slug"].replace("-", "_") != file.parent.name:
        raise UserError(f"card {file}: slug", data["slug"], f"{file.parent.name.replace('_', '-')}, after its folder")
    if data["family"] not in FAMILIES:
        raise UserError(f"card {file}: family", data["family"], FAMILIES)
    if file.parents[2] == _HOME and data["family"] != file.parents[1].name:
        raise UserError(f"card {file}: family", data["family"], f"{file.parents[1].name}, after its folder")
    if not data["faithful"].startswith(FAITHFUL):
        raise UserError(f"card {file}: faithful", data["faithful"], f"a text that begins with {', '.join(FAITHFUL)}")
    if not 1980 <= data["year"] <= 2100:
        raise UserError(f"card {file}: year", data["year"], "a year")
