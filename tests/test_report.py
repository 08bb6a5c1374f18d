"""The report: complete, offline, its links whole, its pictures described."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakes import notebook

from ood_utils import config, files, provenance, store
from ood_utils.errors import UserError
from ood_utils.series import report, state

# one pixel
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Page(HTMLParser):
    """Links, sources, texts of images, ids, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.images, self.ids, self.open, self.text = [], [], set(), [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("href", "src") if name in values]
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


def executed(path: Path) -> None:
    """A notebook as papermill leaves it: maths, a figure, a table, a folded solution."""
    notebook(
        path, "fig", "solution = 6 * 7", prose="# 01 - Is <it> so?\n\nThe gap $\\Delta$ ...\n\n## The figure"
    )
    content = json.loads(path.read_text())
    figure = {"output_type": "display_data", "metadata": {}, "data": {"image/png": PNG, "text/plain": "x"}}
    content["cells"][2]["outputs"] = [
        figure,
        {"output_type": "stream", "name": "stdout", "text": "gap 0.83\n"},
    ]
    content["cells"][3]["metadata"] = {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "outputs" / "mine"
    begun = store.RunFolder(folder, config.Profile(title="Mine & <yours>"), "01_first")
    made = store.new_record("mine", "glyphs", begun.profile, {"lam": 0.1}, provenance.provenance())
    outputs = {"figures/gap_axis.png": {}}
    made["notebooks"] = {
        "01_first": {
            "status": "done",
            "seconds": 90.0,
            "peak_mib": 2048,
            "outputs": outputs,
            "facts": {"n": 3},
        },
        "02_second": {"status": "failed", "seconds": 1.0, "error": {"kind": "X", "message": "it <broke>"}},
    }
    made["status"] = "failed"
    store.write_record(folder, made)
    for name in ("headline.png", "gap_axis.png", "by_hand.png"):
        files.atomic_write(begun.path("figures", name), b"png")
    files.atomic_write(begun.path("figures", "gap_axis.csv"), "x\n1\n")
    begun.save_html("globe", "<p>globe</p>")
    rows = "method,score,fpr95_id,n\nFLYP,MCM,0.31234,300\nCMA,NegLabel,0.0123456,300\n"
    files.atomic_write(begun.path("tables", "headline.csv"), rows)
    files.atomic_write(begun.path("tables", "long.csv"), "x\n" + "1\n" * 100)
    begun.save_results({"gap": 0.8312345, "accuracy": {"id": 0.66}} | {f"n{i}": i for i in range(20)})
    (folder / "notebooks").mkdir()
    executed(folder / "notebooks" / "01_first.ipynb")
    executed(folder / "notebooks" / "02_second.failed.ipynb")
    executed(folder / "notebooks" / "02_second.partial.ipynb")
    return folder


@pytest.fixture
def pages(folder):
    notebooks = [
        state.Notebook(Path(f"{name}.ipynb"), (), f"{name}?") for name in ("01_first", "02_second", "03_x")
    ]
    assert report.build(folder, notebooks)
    return {
        p.relative_to(folder).as_posix(): Page(p)
        for p in [folder / "index.html", *folder.glob("notebooks/*.html")]
    }


def test_every_page_is_whole_and_every_link_leads_somewhere(folder, pages):
    assert set(pages) == {"index.html", "notebooks/01_first.html", "notebooks/02_second.failed.html"}
    for name, page in pages.items():
        assert not page.open
        for link in page.links:
            if link.startswith("#"):
                assert link[1:] in page.ids
            elif not link.startswith(("data:", "https://cdn.jsdelivr.net/npm/mathjax")):
                assert ((folder / name).parent / link.split("#")[0]).is_file(), link


def test_nothing_but_mathjax_is_asked_of_the_network(pages, folder):
    for name in pages:
        text = (folder / name).read_text(encoding="utf-8")
        assert set(re.findall(r"(?:https?:)?//[\w.]+", text)) <= {"https://cdn.jsdelivr.net"}
    assert "http" not in (folder / "index.html").read_text(encoding="utf-8")
    assert (
        "shown as TeX source" in pages["notebooks/01_first.html"].text
    )  # hidden unless MathJax cannot be had


def test_every_image_has_a_text(pages):
    images = [image for page in pages.values() for image in page.images]
    assert len(images) == 6 and all(len(image.get("alt", "")) > 10 for image in images)
    assert pages["notebooks/01_first.html"].images[0]["alt"] == "Figure: The figure"


def test_the_index_shows_numbers_states_and_facts(pages):
    text = pages["index.html"].text
    for part in (
        "Mine & <yours>",
        "0.312",
        "0.0123",
        "300",
        "0.831",
        "accuracy id",
        "0.66",
        "12 more",
        "1.5 min",
    ):
        assert part in text, part
    for part in (
        "02_second?",
        "it <broke>",
        "03_x?",
        "not run",
        '{"lam": 0.1}',
        "torch 2",
        "by hand",
        "2.0 GiB",
    ):
        assert part in text, part
    assert "share of OoD accepted when 95 % of ID is accepted" in text and "First 12 of 100 rows" in text
    links = pages["index.html"].links
    assert {
        "figures/globe.html",
        "figures/gap_axis.csv",
        "tables/long.csv",
        "notebooks/01_first.html",
    } <= set(links)


def test_solutions_are_folded(folder, pages):
    html = (folder / "notebooks" / "01_first.html").read_text()
    folded = html.split("<details>")[1].split("</details>")[0]
    assert "Show the solution" in folded and "7" in folded and html.count("<details>") == 1
    assert "gap 0.83" in pages["notebooks/01_first.html"].text


def test_it_is_written_again_only_when_something_changed(folder, pages):
    assert not report.build(folder)
    files.atomic_write(folder / "tables" / "new.csv", "x\n1\n")
    assert report.build(folder) and not report.build(folder)


def test_a_run_used_by_hand_alone_has_a_report(tmp_path):
    made = store.new_record("mine", "glyphs", config.Profile(), {}, {})
    made["notebooks"]["01_first"] = {"status": "interactive"}
    store.write_record(tmp_path, made)
    assert report.build(tmp_path) and "interactive" in Page(tmp_path / "index.html").text


def test_an_empty_folder_has_no_report(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.build(tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.31234, "0.312"),
        (0.01234, "0.0123"),
        (12, "12"),
        (1e-05, "1e-05"),
        (3.0, "3"),
        (True, "True"),
        ("x", "x"),
    ],
)
def test_numbers_as_they_are_shown(value, shown):
    assert report._cell(value) == shown


def test_tables_keep_their_words_and_leave_gaps_empty(tmp_path):
    path = files.atomic_write(tmp_path / "t.csv", "class,count,share\nNone <b>,3,\nnan,4,0.5\n")
    html = report._table(path, 12)["html"]
    assert "None &lt;b&gt;" in html and ">nan<" in html and ">3<" in html and html.count("nan") == 1
