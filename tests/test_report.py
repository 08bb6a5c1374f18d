"""The report: complete, offline, its links whole, its pictures described."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fakes import notebook
from pages import Page, faults

from ood_utils import config, files, provenance, store
from ood_utils.errors import UserError
from ood_utils.series import page, report, state

# one pixel
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def executed(path: Path) -> None:
    """A notebook as papermill leaves it: maths, a figure, a table, a folded solution."""
    notebook(
        path,
        "fig",
        "solution = 6 * 7",
        prose="# 01 - Is <it> so?\n\nThe **gap** $\\Delta$, [there](../docs/X.md) ...\n\n## The figure",
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
        files.atomic_write(begun.folder / "figures" / name, b"png")
    files.atomic_write(begun.folder / "figures" / "gap_axis.csv", "x\n1\n")
    begun.save_html("globe", "<p>globe</p>")
    rows = "method,score,fpr95_id,n\nFLYP,MCM,0.31234,300\nCMA,NegLabel,0.0123456,300\n"
    files.atomic_write(begun.folder / "tables" / "headline.csv", rows)
    files.atomic_write(begun.folder / "tables" / "long.csv", "x\n" + "1\n" * 100)
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


def test_every_page_is_whole_every_link_leads_somewhere_and_no_network_is_asked(folder, pages):
    assert set(pages) == {"index.html", "notebooks/01_first.html", "notebooks/02_second.failed.html"}
    assert faults(folder) == []
    assert "http" not in (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("<p>a **b**</p>", "shows a **b**"),
        ("<p>a $x$</p>", "shows a $x$"),
        ("<p><code>**kwargs</code></p><a href='x.html'>x</a><a href='https://x.org'>y</a>", None),
        ("<style>@import '//x.org/y.css'</style>", "loads //x.org/y.css"),
        ("<script src='https://x.org/z.js'></script>", "loads https://x.org/z.js"),
        ("<a href='gone.csv'>x</a>", "leads to gone.csv, which is not there"),
        ("<p id='a'></p><a href='#a'>x</a><a href='#b'>y</a>", "leads to #b, which it has not"),
    ],
)
def test_faults_are_found(tmp_path, html, fault):
    (tmp_path / "x.html").write_text(html)
    assert faults(tmp_path) == ([f"x.html {fault}"] if fault else [])


def test_the_formulas_of_all_notebooks_are_drawn_without_a_network():
    drawn = {path.stem: page.notebook(path) for path in sorted((config.ROOT / "notebooks").glob("*.ipynb"))}
    assert len(drawn) == 6 and sum(html.count("<math") for html in drawn.values()) > 20
    for name, html in drawn.items():
        shown = Page(text=html)
        assert shown.raw() == [] and all(source.startswith("data:") for source in shown.sources), name
        formulas = [part.split("</math>")[0] for part in html.split("<math")[1:]]
        assert not any("\\" in formula or "&amp;" in formula for formula in formulas), name


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("**near**: 3 < 4 & <b>", "<strong>near</strong>: 3 &lt; 4 &amp; &lt;b&gt;"),
        ("$x_k$", "<msub><mi>x</mi><mi>k</mi></msub>"),
        ("$a_1_2 < b$", "<code>a_1_2 &lt; b</code>"),  # TeX refuses it too
        ("$\\log q$", '<mi>log</mi><mspace width="0.167em" /><mi>q</mi>'),
        ("$$\\begin{matrix} a & b \\end{matrix}$$", "<mtable>"),
        ("[a](https://x.org/) [b](#c)", '<a href="https://x.org/">a</a> <a href="#c">b</a>'),
        ("[first](../notebooks/01_first.ipynb#x)", '<a href="01_first.html#x">first</a>'),
        ("[gone](03_x.ipynb), [terms](docs/GLOSSARY.md)", "<p>gone, terms</p>"),
    ],
)
def test_markdown_formulas_and_links(folder, markdown, shown):
    within = folder / "notebooks" if "01_first" in markdown else None
    assert shown in page.html(markdown, within)


def test_the_report_opens_with_the_answer(folder):
    assert report.build(folder) and "the answer" not in (folder / "index.html").read_text()
    begun = store.RunFolder(folder, config.Profile(), "01_first")
    begun.save_results({"answer": ["**Near** it holds.", "Far: 3 < 4."], "gap": 0.5})
    begun.save_table(
        "answer", pd.DataFrame({"group": ["near"], "fpr95_id": [0.123], "verdict": ["not settled"]})
    )
    assert report.build(folder) and faults(folder) == []
    html = (folder / "index.html").read_text()
    answer = html.split("</h1>")[1].split("</section>")[0]
    assert "<strong>Near</strong> it holds." in answer and "Far: 3 &lt; 4." in answer
    assert ">not settled<" in answer and ">0.123<" in answer and "share of OoD accepted" in answer
    assert "Not all of this run is current" in answer  # 02_second failed
    assert html.index("</h1>") < html.index("it holds") < html.index("not settled") < html.index("<nav")


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


def test_claims_are_sentences_in_markdown(tmp_path):
    path = files.atomic_write(tmp_path / "claims.csv", "group,claim\n**far**,- **far**: 3 < 4\nnear,\n")
    html = report._table(path, 12)["html"]
    assert "<li><strong>far</strong>: 3 &lt; 4</li>" in html and ">**far**<" in html and "nan" not in html


def test_a_damaged_table_is_one_sentence_and_a_damaged_notebook_a_page_that_says_so(folder, pages, capsys):
    copy = folder / "notebooks" / "01_first.ipynb"
    copy.write_text(copy.read_text()[:300])
    store.write_record(folder, store.read_record(folder) | {"status": "partial"})
    assert report.build(folder)
    assert "01_first.ipynb is no whole notebook" in Page(folder / "notebooks" / "01_first.html").text
    assert "01_first.ipynb is no whole notebook (" in capsys.readouterr().out
    for content in (b"", b"a,b\n1,2,3,4\n1\n5,6,7,8,9\n", b"\xff\xfe\x00broken"):
        (folder / "tables" / "long.csv").write_bytes(content)
        with pytest.raises(
            UserError, match=r"^table .*long.csv is damaged \([^\n]*\); `ood run` makes it again$"
        ):
            report.build(folder)


TAG = "<img src=x onerror=alert(1)>"


def test_the_names_of_classes_and_files_are_never_tags(folder):
    begun = store.RunFolder(folder, config.Profile(), "01_first")
    begun.save_table("answer", pd.DataFrame({"class": [TAG], "claim": [TAG], TAG: [1]}))
    begun.save_results({"answer": [f"Worst: {TAG}."], "worst class": TAG, TAG: 3})
    files.atomic_write(
        folder / "checkpoints" / "a" / "card.json", json.dumps({"unreadable": [f"{TAG}/1.jpg"]})
    )
    copy = folder / "notebooks" / "01_first.ipynb"
    content = json.loads(copy.read_text())
    table = {"text/html": pd.DataFrame({"class": [TAG]}).to_html(), "text/plain": TAG}
    shown = {"output_type": "display_data", "metadata": {}, "data": table}
    content["cells"][3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": f"{TAG}\n"}, shown]
    copy.write_text(json.dumps(content))
    assert report.build(folder)
    for path in (folder / "index.html", folder / "notebooks" / "01_first.html"):
        images = [image for image in Page(path).images if image.get("src") == "x"]
        assert not images and "<img src=x" not in path.read_text() and TAG in Page(path).text
