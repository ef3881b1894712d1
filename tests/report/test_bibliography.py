from pathlib import Path

import pytest

from steercube.report.bibliography import Bibliography, read_bibliography

ENTRIES = """
@article{two2001, author = {Two, A. and Three, B.}, title = {Of {Two}}, journal = {J 1, 2--3},
  year = {2001}, url = {https://example.org/2}}
@article{one1999, author = {One, A.}, title = {Alone}, journal = {J}, year = {1999},
  url = {https://example.org/1}}
@article{many2020, author = {Many, A. and B, C. and D, E.}, title = {Crowd}, journal = {J},
  year = {2020}, url = {https://example.org/3}}
"""


@pytest.fixture
def works(tmp_path: Path) -> Bibliography:
    (tmp_path / "a.bib").write_text(ENTRIES)
    return read_bibliography(tmp_path / "a.bib")


def test_works_are_cited_by_their_authors(works: Bibliography) -> None:
    assert works.cite("one1999") == "[One 1999](#ref-one1999)"
    assert works.cite("two2001") == "[Two & Three 2001](#ref-two2001)"
    assert works.cite("many2020") == "[Many et al. 2020](#ref-many2020)"


def test_the_list_holds_what_is_cited_in_order_with_anchors(works: Bibliography) -> None:
    lines = works.listed(works.cite("two2001") + works.cite("many2020")).splitlines()
    assert [line.split('"')[1] for line in lines] == ["ref-many2020", "ref-two2001"]
    assert "*Of Two*. J 1, 2–3." in lines[1]


def test_unknown_works_are_named(works: Bibliography) -> None:
    text = works.cite("one1999") + works.cite("nobody")
    assert works.problems_of(text) == ["'nobody' is cited and not in references.bib"]


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bib").write_text("@article{a, title = {b}, title = {c}}")
    with pytest.raises(ValueError, match=r"a\.bib"):
        read_bibliography(tmp_path / "a.bib")
