"""A page as a browser reads it: its elements in their order, its attributes and its visible text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline.reporting import Records, render_page

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """Reads a page with a stack of open elements, and collects its attributes and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> never closed" for tag in self.stack]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += "" if tag == "wbr" else " "
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.stack or self.stack[-1] != tag:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes {self.stack[-1:]}")
        else:
            self.stack.pop()

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.text += data


def render(inputs: dict[str, Any], folder: Path) -> tuple[str, Page]:
    """The page that a run's records give: its HTML, and what is read of it."""
    html = render_page(Records(**inputs), folder).read_text(encoding="utf-8")
    page = Page(html)
    page.words = " ".join(page.text.split())
    return html, page
