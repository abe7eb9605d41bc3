"""A page as its readers get it: tables, scripts and visible text."""

import json
from html.parser import HTMLParser
from typing import Any


class Read(HTMLParser):
    """The tables (rows of texts), the scripts and the visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
                self._inside = tag
            case "script":
                self.scripts.append((dict(attrs), ""))
                self._inside = tag
            case "style":
                self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        if self._inside not in ("script", "style"):
            self.text += data

    def json(self, name: str) -> Any:
        return json.loads(next(content for attributes, content in self.scripts if attributes.get("id") == name))
