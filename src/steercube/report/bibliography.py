"""Literature from a BibTeX file: citations by key, and the list at the end of a post."""

import re
from dataclasses import dataclass
from pathlib import Path

from bibtexparser.entrypoint import parse_string
from bibtexparser.model import Field

from steercube.schema import raise_if_any, read_text

FIELDS = ("author", "title", "journal", "year", "url")
CITED = re.compile(r"\]\(#ref-([\w-]+)\)")


@dataclass(frozen=True)
class Work:
    """One entry: `authors` are family names, `where` a journal or an archive, `url` its address."""

    key: str
    authors: tuple[str, ...]
    year: str
    title: str
    where: str
    url: str

    @property
    def short(self) -> str:
        """As a text cites it: Rimsky et al. 2023."""
        names = {1: "{}", 2: "{} & {}"}.get(len(self.authors), "{} et al.")
        return f"{names.format(*self.authors)} {self.year}"


@dataclass(frozen=True)
class Bibliography:
    """Works by key, in the order of authors and years."""

    works: dict[str, Work]

    def cite(self, key: str) -> str:
        """A link to the work's place in the list; an unknown key is found by `problems_of`."""
        short = self.works[key].short if key in self.works else key
        return f"[{short}](#ref-{key})"

    def listed(self, text: str) -> str:
        """The works that a text cites, one a line with an anchor that `cite` links to."""
        cited = set(CITED.findall(text))
        return "\n".join(
            f'- <a id="ref-{w.key}"></a>{w.short}. *{w.title}*. {w.where}. <{w.url}>'
            for w in self.works.values()
            if w.key in cited
        )

    def problems_of(self, text: str) -> list[str]:
        """Keys that a text cites and the list lacks."""
        unknown = set(CITED.findall(text)) - set(self.works)
        return [f"{key!r} is cited and not in references.bib" for key in sorted(unknown)]


def read_bibliography(path: str | Path) -> Bibliography:
    """The works of a BibTeX file. Raises ValueError with every line that is wrong."""
    library = parse_string(read_text(path))
    raise_if_any(
        [f"line {(b.start_line or 0) + 1}: {b.error}" for b in library.failed_blocks]
        + [
            f"line {(entry.start_line or 0) + 1}: {entry.key!r} lacks {name}"
            for entry in library.entries
            for name in FIELDS
            if name not in entry.fields_dict
        ],
        what=str(path),
    )
    works = [_work(entry.key, entry.fields_dict) for entry in library.entries]
    return Bibliography({w.key: w for w in sorted(works, key=lambda w: (w.authors, w.year))})


def _work(key: str, fields: dict[str, Field]) -> Work:
    text = {name: re.sub(r"[{}]", "", str(f.value)) for name, f in fields.items()}
    people = re.split(r"\s+and\s+", text["author"].strip())
    return Work(
        key=key,
        authors=tuple(name.split(",")[0].strip() for name in people),
        year=text["year"],
        title=text["title"],
        where=text["journal"].replace("--", "–"),
        url=text["url"],
    )
