"""The site: every system has its page, links lead somewhere, filters work, and an old site is replaced as a whole."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from limbeck import cli
from limbeck.errors import UserError
from limbeck.experiment.base import VERDICTS
from limbeck.report import site
from limbeck.report.site import MARK, System, index_context, write_site
from limbeck.systems import registry
from tests.report.browser import open_page
from tests.report.samples import ARMS, CARD, CLAIMS
from tests.report.site_samples import COUNT, PIXEL, TASKS, family_of, place_of, slug_of, write_ledger, write_systems
from tests.report.test_pages import read

CHOOSE = """
  const form = page.getElementById("filters");
  const set = (name, value) => {
    if (name === "family") return form.querySelector(`input[name=family][value="${value}"]`).click();
    form.elements[name].value = value;
    form.dispatchEvent(new Event("input", {bubbles: true}));
  };
  const shown = () => [...page.querySelectorAll("#systems tr[data-task]")].filter((row) => row.offsetParent !== null);
  const note = (key, value) => { document.body.dataset[key] = value; };
"""


class Addresses(HTMLParser):
    """Every id and every link of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attributes}
        self.ids |= {named["id"]} if "id" in named else set()
        self.links += [named["href"]] if tag == "a" and "href" in named else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return write_systems(folder / "systems"), write_ledger(folder / "ledger")


@pytest.fixture(scope="module")
def built(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "deep" / "site"
    pages = write_site(out, root=sources[0], ledger_root=sources[1])
    assert [page.relative_to(out).as_posix() for page in pages[:2]] == ["index.html", f"systems/{slug_of(0)}.html"]
    assert len(pages) == COUNT + 1
    return out


def few(folder: Path, count: int = 2) -> Path:
    return write_systems(folder / "few", count)


def page_of(built: Path, number: int) -> Path:
    return built / "systems" / f"{slug_of(number)}.html"


def checked(folder: Path) -> dict[Path, Addresses]:
    """The pages of a site, after a look at each: well-formed, headings in order, links that lead somewhere."""
    found = {page: Addresses(page.read_text(encoding="utf-8")) for page in sorted(folder.rglob("*.html"))}
    for page, addresses in found.items():
        read(page)
        assert addresses.headings[0] == 1
        assert addresses.headings.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(addresses.headings)), (
            page.name,
            addresses.headings,
        )
        for link in addresses.links:
            if link.startswith("https://"):
                continue
            place, fragment = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
            target = (page.parent / place).resolve() if place else page
            assert target in found, f"{page.name}: {link}"
            if fragment.startswith("family="):
                assert fragment.removeprefix("family=") in found[target].ids, f"{page.name}: {link}"
            elif fragment:
                assert fragment in found[target].ids, f"{page.name}: {link}"
    return found


def test_every_page_is_whole_and_every_link_leads_somewhere(built: Path) -> None:
    assert len(checked(built)) == COUNT + 1


def test_the_real_cards_and_pages_make_a_whole_site(tmp_path: Path) -> None:
    write_site(tmp_path / "site", ledger_root=tmp_path / "empty")
    assert len(checked(tmp_path / "site")) == len(registry.systems()) + 1


def test_the_index_lists_every_system_and_needs_no_script(built: Path, sources: tuple[Path, Path]) -> None:
    text = (built / "index.html").read_text(encoding="utf-8")
    _, words = read(built / "index.html")
    for number in range(COUNT):
        assert f"{slug_of(number)} Method {number}: A Title" in words
    assert f"{COUNT} published systems" in words
    assert "2 have recorded experiments" in words
    assert f"Classification {sum(family_of(number) == 'classification' for number in range(COUNT))} " in words
    assert "not recorded yet" in words
    assert re.search(r'<form class="filters"[^>]* hidden>', text)
    assert '<nav class="families" id="families" aria-label="Families">' in text
    claims = Counter(
        claim["verdict"]
        for file in sources[1].rglob("*.json")
        for entry in json.loads(file.read_text())["entries"].values()
        for claim in entry["claims"]
    )
    for verdict in VERDICTS:
        assert re.search(rf"{claims[verdict]} claims . {verdict}", words), verdict


def test_the_index_counts_what_the_ledger_holds() -> None:
    recorded = {card.slug: registry.verdicts(card.slug) for card in registry.systems()}
    systems = [System(card, site.ledger.read(card.family, card.slug)["entries"]) for card in registry.systems()]
    shown = index_context(systems)
    for verdict in VERDICTS:
        counted = sum(counts[verdict] for entries in recorded.values() for counts in entries.values())
        assert shown["claims"][verdict] == counted
    assert shown["experiments"] == sum(map(len, recorded.values()))
    assert sum(len(found) for _, _, found in shown["families"]) == len(systems)


def test_the_page_of_a_system_says_everything(built: Path) -> None:
    _, words = read(page_of(built, 0))
    text = page_of(built, 0).read_text(encoding="utf-8")
    for name, (description, _, _) in ARMS.items():
        assert words.count(description) >= 2, f"{name} in both experiments"
    for claim in CLAIMS:
        assert claim.text in words
    for said in (
        "The student learns ranking number 0.",
        CARD["formula"],
        "a projector",
        "Basis: from paper.",
        "method-00: a method & its <b>page</b>",
        "How to use it",
        "What was not reproduced, and why Few labels Ours beats KD by five points Ten classes leave no room for it.",
        "What stayed inconclusive",
        "Experiment few_labels",
        "Experiment plain",
        "95% interval +5.",
        "Validation accuracy during training",
        "Samples",
        "25 runs of",
        "torch 2.13.0",
        "ab" * 32,
        "limbeck run ours --record",
        "Not shown for more than ten classes.",
        "The released loss is summed.",
        "1 diverged",
    ):
        assert said in words, said
    assert text.count(f'src="{PIXEL}"') == 2
    mean = re.search(
        r">(8\d\.\d ± \d\.\d%)<span class=\"hidden-text\"> \(best\)</span><span class=\"sub\">(.*?)</span>", text
    )
    assert mean is not None
    assert re.fullmatch(r"8\d\.\d to 8\d\.\d%", mean[2])


def test_a_system_without_experiments_or_page_has_its_page_too(built: Path) -> None:
    for number in (2, COUNT - 1):
        _, words = read(page_of(built, number))
        assert "No experiment of this system is recorded yet." in words
        assert f"limbeck run {slug_of(number)} --record" in words
        assert ("How to use it" in words) == (number == 2)


def test_a_closed_gate_is_said_where_the_results_are_listed(built: Path) -> None:
    _, words = read(page_of(built, 1))
    assert "The gate did not pass: void." in words


def test_pages_lead_to_their_neighbours_in_the_order_of_the_index(built: Path) -> None:
    listed = [link for link in Addresses((built / "index.html").read_text()).links if link.startswith("systems/")]
    assert len(listed) == COUNT
    for before, after in pairwise(listed):
        assert f'rel="next" href="{Path(after).name}"' in (built / before).read_text(encoding="utf-8")
        assert f'rel="prev" href="{Path(before).name}"' in (built / after).read_text(encoding="utf-8")


def test_links_between_readmes_lead_to_pages(built: Path) -> None:
    text = page_of(built, 0).read_text(encoding="utf-8")
    assert f'<a href="{slug_of(1)}.html">beside another</a>' in text
    assert "in a file," in text
    assert "example.org/x.png" not in text


def test_a_picture_of_a_readme_is_put_into_the_page(tmp_path: Path) -> None:
    root = few(tmp_path, 1)
    picture = root / place_of(0) / "shown.png"
    picture.write_bytes(b"png")
    (tmp_path / "secret.png").write_bytes(b"png")
    page = root / place_of(0) / "README.md"
    page.write_text(page.read_text() + "\n![Outside](../../../secret.png)\n")
    write_site(tmp_path / "site", root=root, ledger_root=tmp_path)
    text = page_of(tmp_path / "site", 0).read_text(encoding="utf-8")
    assert '<img src="data:image/png;base64,cG5n" alt="A picture"' in text
    assert text.count("<img") == 1


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("number", [None, 0, 1, COUNT - 1])
def test_a_browser_shows_the_pages_without_a_complaint(built: Path, number: int | None, width: int) -> None:
    path = built / "index.html" if number is None else page_of(built, number)
    probe = """
      document.body.dataset.width = page.documentElement.scrollWidth;
      document.body.dataset.shown = page.querySelectorAll("main a").length;
    """
    page = open_page(path, probe=probe, width=width)
    assert page.console == []
    assert int(page.data["width"]) <= width, "the page is wider than the window"
    assert int(page.data["shown"]) > 0


@pytest.mark.parametrize("width", [1200, 390])
def test_filters_narrow_the_list_and_write_the_address(built: Path, width: int) -> None:
    probe = f"""{CHOOSE}
      const frame = page.defaultView;
      note("all", shown().length);
      set("family", "vision");
      note("family", shown().length);
      note("heads", [...page.querySelectorAll("#systems tr.family")].filter((row) => row.offsetParent).length);
      set("task", "{TASKS[2]}");
      note("both", shown().map((row) => row.querySelector("a").textContent).join(" "));
      note("found", form.elements.found.textContent);
      note("hash", frame.location.hash);
      set("family", ""); set("task", "");
      set("verdict", "not reproduced");
      note("verdict", shown().length);
      set("verdict", "");
      set("q", "METHOD-07 Queue");
      note("search", shown().map((row) => row.querySelector("a").textContent).join(" "));
      note("spaces", frame.location.hash);
      set("q", "nothing has these words");
      note("none", shown().length + " " + (page.getElementById("nothing").offsetParent !== null));
      form.elements.q.focus();
      note("focus", page.activeElement.name);
      form.querySelector("[type=reset]").click();
      setTimeout(() => note("reset", shown().length + " " + frame.location.hash), 50);
    """
    page = open_page(built / "index.html", probe=probe, width=width)
    assert page.console == []
    vision = [number for number in range(COUNT) if family_of(number) == "vision"]
    both = [number for number in vision if number % len(TASKS) == 2]
    assert both
    expected = {
        "all": str(COUNT),
        "family": str(len(vision)),
        "heads": "1",
        "both": " ".join(map(slug_of, both)),
        "found": f"{len(both)} of {COUNT} systems",
        "hash": f"#family=vision&task={TASKS[2]}",
        "verdict": "1",
        "search": slug_of(7),
        "spaces": "#q=METHOD-07+Queue",
        "none": "0 true",
        "focus": "q",
        "reset": f"{COUNT} ",
    }
    assert {key: page.data.get(key) for key in expected} == expected


def test_the_address_sets_the_filters(built: Path) -> None:
    probe = f"""{CHOOSE}
      note("shown", shown().map((row) => row.querySelector("a").textContent).join(" "));
      note("family", form.elements.family.value);
      note("verdict", form.elements.verdict.value);
      location.hash = "#family=nonsense&task=";
      setTimeout(() => note("after", shown().length + " " + form.elements.family.value), 100);
    """
    fragment = f"family={family_of(0)}&verdict=reproduced&q=title"
    page = open_page(built / "index.html", probe=probe, fragment=fragment)
    assert page.console == []
    assert page.data["shown"] == slug_of(0)
    assert page.data["family"] == family_of(0)
    assert page.data["verdict"] == "reproduced"
    assert page.data["after"] == f"{COUNT} "


def test_families_say_how_many_fit_the_other_filters(built: Path) -> None:
    probe = f"""{CHOOSE}
      set("verdict", "not recorded"); set("family", "vision");
      const count = (name) => form.querySelector(`input[value="${{name}}"] + span b`).textContent;
      note("counts", [count(""), count("{family_of(0)}"), count("vision")].join(" "));
    """
    page = open_page(built / "index.html", probe=probe)
    sizes = Counter(map(family_of, range(COUNT)))
    assert page.data["counts"] == f"{COUNT - 2} {sizes[family_of(0)] - 1} {sizes['vision']}"


@pytest.mark.parametrize("scheme", [0, 1])
def test_words_stand_out_from_their_ground(scheme: int) -> None:
    templates = Path(site.__file__).parent / "templates"
    text = "".join((templates / name).read_text(encoding="utf-8") for name in ("style.css", "site.css"))
    known: dict[str, list[str]] = {}
    for name, value in re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text):
        known.setdefault(name, []).append(value)
    colours = {name: values[scheme] for name, values in known.items()}

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((_luminance(colours[one]), _luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for ground in ("paper", "card"):
        for name in ("ink", "muted", "good", "bad", "open"):
            assert contrast(name, ground) >= 4.5, (name, ground)
        assert contrast("field", ground) >= 3
    assert contrast("ink", "tint") >= 4.5
    assert contrast("muted", "tint") >= 4.5


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_an_old_site_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out, root = tmp_path / "site", few(tmp_path)
    write_site(out, root=root, ledger_root=tmp_path)
    assert page_of(out, 1).exists()
    shutil.rmtree(root / place_of(1))
    pages = write_site(out, root=root, ledger_root=tmp_path)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted([*pages, out / MARK])
    assert not page_of(out, 1).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"few", "site"}


def test_pages_made_side_by_side_are_the_same(tmp_path: Path) -> None:
    root = few(tmp_path)
    one, two = (write_site(tmp_path / f"jobs{jobs}", root=root, ledger_root=tmp_path, jobs=jobs) for jobs in (1, 2))
    assert [page.read_bytes() for page in one] == [page.read_bytes() for page in two]


def test_a_failure_leaves_the_old_site_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, root = tmp_path / "site", few(tmp_path)
    write_site(out, root=root, ledger_root=tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*.html")}
    written = site._write_system

    def fail_at_the_second(task: site._Task) -> None:
        if task[0].card.slug == slug_of(1):
            raise RuntimeError("stopped")
        written(task)

    monkeypatch.setattr(site, "_write_system", fail_at_the_second)
    with pytest.raises(RuntimeError, match="stopped"):
        write_site(out, root=root, ledger_root=tmp_path)
    assert {path: path.read_bytes() for path in out.rglob("*.html")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"few", "site"}


def test_what_is_not_the_sites_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = few(tmp_path, 1), tmp_path / "site"
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    write_site(tmp_path / "empty", root=root, ledger_root=tmp_path)
    write_site(out, root=root, ledger_root=tmp_path)
    (out / "systems" / "notes.txt").touch()
    for place, reason in (
        (tmp_path / "file", "it is a file"),
        (out, r"it holds systems/notes\.txt"),
        (root, "it holds"),
    ):
        with pytest.raises(UserError, match=reason):
            write_site(place, root=root, ledger_root=tmp_path)
    assert (out / "systems" / "notes.txt").exists()
    monkeypatch.chdir(tmp_path / "empty" / "systems")
    with pytest.raises(UserError, match="the current folder is in it"):
        write_site("..", root=root, ledger_root=tmp_path)


def test_the_mark_of_something_else_is_no_mark(tmp_path: Path) -> None:
    out = tmp_path / "site"
    out.mkdir()
    (out / MARK).write_text("[]")
    with pytest.raises(UserError, match=f"it holds {MARK}"):
        write_site(out, root=few(tmp_path, 1), ledger_root=tmp_path)


def test_the_command_prints_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = few(tmp_path), tmp_path / "site"
    monkeypatch.setattr(site, "write_site", lambda out, **options: write_site(out, root=root, ledger_root=tmp_path))
    assert cli.main(["site", str(out), "--json"]) == 0
    pages = json.loads(capsys.readouterr().out)
    assert pages == [str(out / "index.html"), *(str(page_of(out, number)) for number in range(2))]
    assert cli.main(["site", str(out), "--jobs", "1"]) == 0
    assert f"3 pages; begin with {out / 'index.html'}" in capsys.readouterr().out
    (out / "mine.txt").touch()
    assert cli.main(["site", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"limbeck: out: given {out}; allowed: a new folder")
