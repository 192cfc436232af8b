"""The documents as a site: it builds without a warning, loads nothing from a network, and every link and page has its place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from calendar import month_name
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from unicodedata import combining, normalize
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.heavy

if find_spec("mkdocs") is None or find_spec("material") is None:
    pytest.skip("mkdocs-material is not installed: pip install 'emscope[docs]'", allow_module_level=True)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
FETCHED = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Page(HTMLParser):
    """What a page loads, where it links to, and the anchors it has."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if (source := given.get(LOADED.get(tag, ""))) is not None:
            self.loads.append(source)
        if tag == "link" and FETCHED & set(given.get("rel", "").split()):
            self.loads.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.anchors |= {given[k] for k in ("id", "name") if k in given}


def from_a_network(reference: str) -> bool:
    return re.match(r"(?:[a-z][a-z0-9+.-]*:)?//", reference, re.I) is not None


def plain(text: str) -> str:
    """Return a text without accents."""
    return "".join(c for c in normalize("NFD", text) if not combining(c))


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_modules_that_the_pages_name_exist():
    for page in (DOCS / "papers.md", DOCS / "inside.md"):
        for name in re.findall(r"`(emscope(?:\.[a-z_]+)+)", page.read_text(encoding="utf-8")):
            path = ROOT.joinpath("src", *name.removesuffix(".steering_vector").split("."))
            assert path.is_dir() or path.with_suffix(".py").exists(), (page.name, name)


def test_nothing_is_loaded_from_a_network(site, pages):
    for path, page in pages.items():
        assert page.loads, path
        assert not [s for s in page.loads if from_a_network(s)], path
        assert "api.github.com" not in path.read_text(encoding="utf-8")
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        text = sheet.read_text(encoding="utf-8")
        assert not [u for u in re.findall(r"url\(\s*['\"]?([^'\")]+)", text) if from_a_network(u)], sheet
        assert not re.search(r"@import\s+(?:url\()?['\"]?(?:https?:)?//", text), sheet


def test_what_pages_load_is_there(site, pages):
    for path, page in pages.items():
        for source in page.loads:
            if not source.startswith("data:") and path.name != "404.html":  # the server's own page has absolute paths
                assert (path.parent / unquote(source.split("?")[0].split("#")[0])).is_file(), (path.name, source)


def test_links_and_anchors_lead_somewhere(site, pages):
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            if path.name == "404.html" or from_a_network(link) or link.startswith("mailto:"):
                continue
            place, _, anchor = link.partition("#")
            target = (path.parent / unquote(place)).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.name, link)
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].anchors, (path.name, link)
                checked += 1
    assert checked > 200


def test_every_page_is_in_the_nav(site, pages):
    written = {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.md")}
    home = pages[site / "index.html"]
    shown = {Path(link) for link in home.links if link.endswith(".html")} | {Path("index.html")}
    assert not written - shown, "add these to the nav in mkdocs.yml"


def test_every_decision_is_listed():
    text = " ".join((DOCS / "decisions.md").read_text(encoding="utf-8").split())
    for path in (DOCS / "decisions").glob("*.md"):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"* [{title}](decisions/{path.name})" in text, path.name


def test_the_search_knows_what_the_pages_say(site):
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert any("Any fine-tune makes a model less sure of text that is foreign to it" in d["text"] for d in found)
    terms = re.findall(r"^### (.+)$", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert len(terms) == len(set(terms)) > 80
    titles = {d["title"] for d in found if d["location"].startswith("glossary.html#")}
    assert set(terms) <= titles


def test_tables_are_tables(site, pages):
    """A table that the page's program does not take for one stands there as a line of bars."""
    for path in DOCS.rglob("*.md"):
        source = re.sub(r"^( *)```.*?^\1```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        written = len(re.findall(r"^ *\|(?: *:?-+:? *\|)+ *$", source, re.M))
        html = (site / path.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert html.count("<table>") == written, path.name


def test_the_glossary_explains_each_term_and_says_where():
    entries = re.split(r"^### ", (DOCS / "glossary.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    for entry in entries:
        title, _, body = entry.partition("\n")
        body = body.split("\n## ")[0]
        assert len(body.split()) >= 6 and re.search(r"\]\([a-z-]+\.md#[a-z0-9-]+\)", body), title


def test_every_source_that_the_code_names_is_in_the_bibliography():
    """Of (Author year) in a docstring or comment, the last author and the year stand together on the page."""
    page = plain((DOCS / "papers.md").read_text(encoding="utf-8"))
    cited = re.compile(r"\b([A-Z][\w-]+)(?:'s)?(?: et al\.| and others)?,? \(?((?:18|19|20)\d\d)\b")
    found = {m for p in (ROOT / "src").rglob("*.py") for m in cited.findall(plain(p.read_text(encoding="utf-8")))}
    found = {(author, year) for author, year in found if author not in month_name}
    assert len(found) > 30
    missing = [f"{author} {year}" for author, year in sorted(found) if not re.search(rf"{author}\b[^|;]{{0,30}}{year}", page)]
    assert not missing, "add these to docs/papers.md"


def test_links_of_the_pages_beside_the_site_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
        assert links and not [link for link in links if not (ROOT / link).exists()], name


def test_a_page_that_is_left_out_and_a_broken_anchor_stop_the_build(tmp_path):
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    config.write_text(re.sub(r"^nav:.*", "nav: [index.md, other.md]\n", settings, flags=re.M | re.S), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    for name, text in (("index", "# One\n\n[two](other.md#three)\n"), ("other", "# Two\n"), ("third", "# Three\n")):
        (tmp_path / "docs" / f"{name}.md").write_text(text)
    done = build(tmp_path / "out", config)
    assert done.returncode != 0
    assert "does not contain an anchor '#three'" in done.stderr and "third.md" in done.stderr
