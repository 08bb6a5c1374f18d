"""Notebooks and Markdown as HTML that is whole without a network.

Formulas become MathML, which browsers draw by themselves; links lead only to what lies beside the page.
"""

import re
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

TEMPLATES = Path(__file__).parent / "templates"


def notebook(path: Path) -> str:
    """An executed notebook as one HTML page: figures inside, solutions folded, every figure with a text."""
    content, heading = nbformat.read(path, as_version=4), path.stem
    for cell in content.cells:
        if cell.cell_type == "markdown":
            heading = ([heading] + re.findall(r"^#+ +(.+)$", cell.source, re.M))[-1].strip()
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {}).setdefault("alt", f"Figure: {heading}")
    words = {"template_name": "basic", "template_file": "notebook.html.j2"}
    exporter = HTMLExporter(extra_template_paths=[str(TEMPLATES)], **words)
    exporter.register_filter("markdown2html", partial(html, folder=path.parent))
    resources = {"title": path.stem, "colours": HtmlFormatter().get_style_defs(".highlight")}
    return exporter.from_notebook_node(content, resources=resources)[0]


def html(text: str, folder: Path | None = None) -> str:
    """Markdown as HTML; HTML within it stays only where the text comes from a notebook of ``folder``."""
    return MarkdownWithMath(renderer=_Offline(folder)).render(text)


class _Offline(IPythonRenderer):
    """nbconvert's own renderer, but for formulas and links."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(escape=folder is None)
        self.folder = folder

    def inline_math(self, body: str, display: str = "inline") -> str:
        """A formula as MathML; as its TeX source where it cannot be converted."""
        spaced = re.sub(r"(?<=\\log|\\exp) +(?=[A-Za-z\\])", r"\\,", body)  # as TeX sets it
        try:
            return convert(spaced, display=display)
        except Exception:  # its errors share no base, and a slip must not cost the report of a long run
            return self.codespan(body)

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link outwards or within the page stays; one to a notebook leads to its page; others are words."""
        parts = urlsplit(url)
        if parts.scheme or not parts.path:
            return super().link(text, url, title)
        name = Path(parts.path).name
        if self.folder is None or not name.endswith(".ipynb") or not (self.folder / name).is_file():
            return text
        return super().link(text, parts._replace(path=f"{name[:-6]}.html").geturl(), title)
