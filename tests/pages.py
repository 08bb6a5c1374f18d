"""What a browser would make of a page: its links, its images, what it asks of the network, what it shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

NAMES = tuple(path.stem for path in sorted((Path(__file__).parents[1] / "notebooks").glob("0*.ipynb")))
CODE = {"pre", "code", "style", "script"}


class Page(HTMLParser):
    """Links, sources, texts of images, ids, and whether every element is closed."""

    def __init__(self, path: Path | None = None, text: str = "") -> None:
        super().__init__()
        self.links, self.sources, self.images, self.ids, self.open = [], [], [], set(), []
        self.text = self.prose = ""  # all that is shown; the same without code
        self.feed(text or path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values["href"]] if tag == "a" and "href" in values else []
        self.sources += [values[name] for name in ("src", "href") if tag != "a" and name in values]
        self.images += [values] if tag == "img" else []
        self.ids |= {values["id"]} if "id" in values else set()
        if tag not in ("img", "meta", "br", "hr", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open = self.open[:-1] if self.open[-1:] == [tag] else self.open

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.prose += "" if CODE & {*self.open} else data

    def raw(self) -> list[str]:
        """What a reader sees of Markdown or TeX that was never turned into anything."""
        return re.findall(r".{,30}(?:\*\*|\$|\\[a-zA-Z]+).{,30}", self.prose)


def faults(folder: Path) -> list[str]:
    """What is wrong with the pages of a report: dead links, things from the network, raw Markdown or TeX."""
    found = []
    for path in sorted(folder.rglob("*.html")):
        page, name = Page(path), path.relative_to(folder).as_posix()
        found += [f"{name} is not whole: {page.open} stay open"] if page.open else []
        found += [f"{name} shows {words}" for words in page.raw()]
        loaded = page.sources + re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", "".join(_styles(path)))
        found += [f"{name} loads {source}" for source in loaded if re.match(r"(https?:)?//", source)]
        for link in page.links + loaded:
            target, _, part = link.partition("#")
            if target and not re.match(r"\w+:|//", target) and not (path.parent / target).exists():
                found.append(f"{name} leads to {link}, which is not there")
            elif not target and part and part not in page.ids:
                found.append(f"{name} leads to {link}, which it has not")
    return found


def _styles(path: Path) -> list[str]:
    return re.findall(r"<style.*?</style>", path.read_text(encoding="utf-8"), re.S)
