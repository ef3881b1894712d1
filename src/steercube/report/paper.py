"""The post of each analysed study, `post.md` and `post.html`, from its folder and the template."""

from collections.abc import Callable
from pathlib import Path

import jinja2

from steercube.netcdf import aside
from steercube.report.methods import methods
from steercube.report.page import PAGE, page
from steercube.report.post import asset, read_assets, read_results, render, said_by_template

Report = Callable[[str], None]


def write_papers(paper: str | Path, *, study: str | None = None, report: Report = print) -> None:
    """The post of every study in `paper` that was analysed, or of the one named.

    Written with the package's own template, references, literature and page, but for files of the
    same name in `paper`.

    Raises FileNotFoundError where there is none, ValueError for a template or results that do not
    fit each other; the posts that were there are then as they were.
    """
    paper = Path(paper)
    where = f"{paper} ({paper.resolve()})"
    analysed = sorted(path.parent.name for path in paper.glob("[!.]*/manifest.json"))
    if study is not None and study not in analysed:
        raise FileNotFoundError(f"{where} holds no results of {study!r}; it holds {analysed}")
    if not analysed:
        raise FileNotFoundError(
            f"{where} holds no results; run `steercube analyze` first, or name their folder with "
            "--paper"
        )
    definitions = methods()
    for name in [study] if study else analysed:
        results = read_results(paper / name)
        # A study's own blocks tell of the contrast in its ledger, and of no other.
        own = name if results.settings.get("contrast_of_ledger", True) else ""
        post = render(results, read_assets(paper, own), methods=definitions)
        try:
            html = page(post, results, paper / name, paper)
        except jinja2.TemplateError as error:
            raise ValueError(f"{asset(paper, PAGE)}{said_by_template(error)}") from error
        for file, text in {"post.md": post.markdown, "post.html": html}.items():
            with aside(paper / name / file) as part:
                part.write_text(text, encoding="utf-8")
        for line in results.left_out:
            report(f"{name}: {line}")
        cited = len(post.citations)
        report(f"{name}: wrote {paper / name / 'post.html'}; it cites {cited} numbers")
