"""Reads a page as a browser would, far enough to check it: structure, texts, and that nothing in it is foreign."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "base", "source"}
ALONE = {"rect", "line", "polyline", "path", "circle"}  # SVG's, written as <line .../>
REFERRING = {"src", "href", "action", "data", "srcset", "xlink:href", "poster", "background"}


@dataclass
class Page(HTMLParser):
    """What a page is made of. `problems` is empty for one that is well nested and self-contained."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        self.problems += [f"the id {name!r} occurs twice" for name in {name for name in ids if ids.count(name) > 1}]
        known = set(ids)
        for tag, attributes in self.tags:
            named = [attributes.get(key) or "" for key in ("aria-labelledby", "aria-describedby")]
            href = attributes.get("href") or ""
            wanted = [*" ".join(named).split(), *([href[1:]] if href.startswith("#") else [])]
            self.problems += [f"<{tag}> refers to {name!r}, which is not there" for name in wanted if name not in known]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.problems.append(f"<{tag}>")
        for name, value in attributes.items():
            if name.startswith("on"):
                self.problems.append(f"<{tag} {name}>")
            if name in REFERRING and not (value or "").startswith("#"):
                self.problems.append(f"<{tag} {name}={value}>")
            if "url(" in (value or ""):
                self.problems.append(f"<{tag} {name}={value}>")
        if tag not in VOID | ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID | ALONE:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID | ALONE:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is read, blanks run together."""
        return " ".join(" ".join(self.texts).split())

    @property
    def headings(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.tags if tag in ("h1", "h2", "h3", "h4")]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
