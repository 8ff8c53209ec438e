"""The static site of all systems, made from cards, ledger and README pages: an index, and a page for each.

    OUT/index.html              the list, with filters that need no server
    OUT/systems/SLUG.html       one system with all its recorded experiments
    OUT/limbeck-site.json       which files of OUT the site wrote

Every file stands alone and fetches nothing, so that the site works from file://. It is written beside ``OUT`` and
takes its place as a whole: an interrupted or failed writing leaves the old site as it was.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

from limbeck.errors import UserError
from limbeck.experiment import ledger
from limbeck.experiment.base import VERDICTS
from limbeck.report.experiment_report import experiment_context, key_of
from limbeck.report.markdown import Article, article
from limbeck.report.pages import write_page
from limbeck.systems import registry
from limbeck.systems.registry import Card

MARK = "limbeck-site.json"
INDEX = "index.html"
UNRECORDED = "not recorded"
_FAMILY_IN_WORDS = {"scenes3d": "3D scenes"}
_PICTURES = ("image/png", "image/jpeg", "image/svg+xml", "image/webp")


@dataclass(frozen=True)
class System:
    """A system as the index lists it: its card, its ledger entries and how its claims came out."""

    card: Card
    entries: Mapping[str, Mapping[str, Any]]

    @property
    def address(self) -> str:
        """Where its page lies in the site."""
        return f"systems/{self.card.slug}.html"

    @property
    def family(self) -> str:
        """The family in words."""
        return family_in_words(self.card.family)

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> how many claims of all entries have it."""
        counted = Counter(claim["verdict"] for entry in self.entries.values() for claim in entry["claims"])
        return {verdict: counted[verdict] for verdict in VERDICTS}

    @property
    def states(self) -> list[str]:
        """What the filter of verdicts finds it by: every verdict that one of its claims has."""
        return [word for word, count in self.counts.items() if count] or [UNRECORDED]

    @property
    def searched(self) -> str:
        """What the search looks through, besides the words of its row."""
        words = (self.card.idea, self.card.venue, self.card.formula, *self.card.parts)
        return " ".join(" ".join(words).split())


def write_site(
    out: str | Path,
    *,
    root: str | Path | None = None,
    ledger_root: str | Path | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the site and return its pages, the index first.

    Args:
        out: the folder; a new or empty one, or a site that was written before and is now replaced.
        root, ledger_root: of the systems and of the ledger; the package's own by default.
        jobs: pages that are made side by side.
        progress: is told how many systems of how many have their page.

    Raises:
        UserError: ``out`` holds something that is not this site's.
    """
    target = Path(out).resolve()
    _check_target(target)
    systems = [
        System(card, ledger.read(card.family, card.slug, ledger_root)["entries"]) for card in registry.systems(root)
    ]
    # As the index shows them, so that next and previous are what stands there.
    systems.sort(key=lambda system: registry.FAMILIES.index(system.card.family))
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        write_page("site_index.html.j2", index_context(systems), aside / INDEX)
        for done, _ in enumerate(_each(_write_system, _tasks(systems, aside), jobs), start=1):
            if progress is not None:
                progress(done, len(systems))
        names = [INDEX, *(system.address for system in systems)]
        (aside / MARK).write_text(json.dumps({"files": [*names, MARK]}, indent=1) + "\n", encoding="utf-8")
        # Again, for what came while the pages were made.
        _check_target(target)
        _put_in_place(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [target / name for name in names]


def index_context(systems: Sequence[System]) -> dict[str, Any]:
    """What the template of the index shows; every number is counted here."""
    families = {
        family: [system for system in systems if system.card.family == family]
        for family in registry.FAMILIES
        if any(system.card.family == family for system in systems)
    }
    states = Counter(state for system in systems for state in system.states)
    claims = Counter[str]()
    for system in systems:
        claims.update(system.counts)
    return {
        "systems": systems,
        "recorded": sum(bool(system.entries) for system in systems),
        "experiments": sum(len(system.entries) for system in systems),
        "claims": {verdict: claims[verdict] for verdict in VERDICTS},
        "families": [(name, family_in_words(name), found) for name, found in families.items()],
        "tasks": sorted(Counter(system.card.task for system in systems).items()),
        "states": [(word, states[word]) for word in (*VERDICTS, UNRECORDED) if states[word]],
    }


def system_context(
    system: System, before: System | None, after: System | None, addresses: Mapping[Path, str]
) -> dict[str, Any]:
    """What the template of one system shows.

    Args:
        before, after: its neighbours in the index.
        addresses: folder of a system -> its page, seen from this one.
    """
    views = [
        experiment_context(entry, system.card, name, f"entry-{key_of(name)}-")
        | {"name": name, "heading": entry.get("title") or name.replace("_", " ")}
        for name, entry in system.entries.items()
    ]
    return {
        "system": system,
        "card": system.card,
        "before": before,
        "after": after,
        "tally": [(word, count) for word, count in system.counts.items() if count],
        "words": VERDICTS,
        "views": views,
        "page": _article(system.card, addresses),
        "missed": _by_verdict(views, "not reproduced"),
        "open": _by_verdict(views, "inconclusive"),
    }


def family_in_words(family: str) -> str:
    """``vision_language`` -> ``Vision language``."""
    words = _FAMILY_IN_WORDS.get(family, family.replace("_", " "))
    return words[:1].upper() + words[1:]


def _by_verdict(views: Sequence[Mapping[str, Any]], verdict: str) -> list[tuple[Mapping[str, Any], list[Any]]]:
    """The claims with this verdict by experiment."""
    found = [(view, [claim for claim in view["claims"] if claim["verdict"] == verdict]) for view in views]
    return [(view, claims) for view, claims in found if claims]


_Task = tuple[System, System | None, System | None, dict[Path, str], Path]


def _tasks(systems: Sequence[System], folder: Path) -> list[_Task]:
    addresses = {system.card.folder: PurePosixPath(system.address).name for system in systems}
    around = [None, *systems, None]
    return [
        (system, around[position], around[position + 2], addresses, folder) for position, system in enumerate(systems)
    ]


def _write_system(task: _Task) -> None:
    system, before, after, addresses, folder = task
    write_page("site_system.html.j2", system_context(system, before, after, addresses), folder / system.address)


def _each(work: Callable[[_Task], None], tasks: Sequence[_Task], jobs: int) -> Iterator[None]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _article(card: Card, addresses: Mapping[Path, str]) -> Article | None:
    """README.md of the system; links lead to pages of the site or are left out, pictures are put in."""
    file = card.folder / "README.md"
    if not file.is_file():
        return None

    def link(address: str) -> str:
        place = (card.folder / address.partition("#")[0]).resolve()
        return addresses.get(place.parent if place.name == "README.md" else place, "")

    def picture(address: str) -> str:
        place, kind = (card.folder / address).resolve(), mimetypes.guess_type(address)[0]
        if kind not in _PICTURES or not place.is_relative_to(card.folder) or not place.is_file():
            return ""
        return f"data:{kind};base64,{base64.b64encode(place.read_bytes()).decode()}"

    return article(file.read_text(encoding="utf-8"), level=3, prefix="page-", link=link, picture=picture)


def _check_target(target: Path) -> None:
    """Only an own site, an empty folder or nothing at all may be replaced."""
    allowed = "a new folder, an empty one, or one that limbeck site wrote"
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError("out", str(target), allowed, "it is a file")
    if Path.cwd().is_relative_to(target):
        raise UserError("out", str(target), allowed, "the current folder is in it, and it would be replaced as a whole")
    own = _own_files(target)
    foreign = []
    for folder, _, files in os.walk(target):
        names = [(Path(folder) / name).relative_to(target).as_posix() for name in files]
        foreign += [name for name in sorted(names) if name not in own]
        if len(foreign) > 3:
            break
    if foreign:
        shown = ", ".join(foreign[:3]) + (" and more" if len(foreign) > 3 else "")
        raise UserError("out", str(target), allowed, f"it holds {shown}")


def _own_files(target: Path) -> set[str]:
    """What an earlier run wrote, by its mark; nothing where there is no mark that can be read."""
    try:
        return set(json.loads((target / MARK).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _put_in_place(aside: Path, target: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    try:
        aside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)
