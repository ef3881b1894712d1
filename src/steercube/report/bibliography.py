"""Literature from a BibTeX file: citations by key, and the list at the end of a post."""

import re
from dataclasses import dataclass
from pathlib import Path

from bibtexparser.entrypoint import parse_string
from bibtexparser.model import Field

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

    def listed(self) -> str:
        """The list, one work a paragraph with an anchor that `cite` links to."""
        return "\n".join(
            f'- <a id="ref-{w.key}"></a>{w.short}. *{w.title}*. {w.where}. <{w.url}>'
            for w in self.works.values()
        )

    def problems_of(self, text: str) -> list[str]:
        """Keys that a text cites and the list lacks, and works that it does not cite."""
        cited = set(CITED.findall(text))
        lacking = [f"{k!r} is cited and not in references.bib" for k in cited - set(self.works)]
        return lacking + [f"{k!r} is never cited" for k in set(self.works) - cited]


def read_bibliography(path: str | Path) -> Bibliography:
    """The works of a BibTeX file. Raises ValueError where it cannot be read."""
    library = parse_string(Path(path).read_text(encoding="utf-8"))
    if library.failed_blocks:
        raise ValueError(f"{path}: {library.failed_blocks[0].error}")
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
