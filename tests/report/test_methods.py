from steercube.analysis.conclusions.tables import SECTIONS, TABLES
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.report.methods import methods


def test_every_estimand_is_defined_with_its_unit() -> None:
    text = methods()
    for name, estimand in ESTIMANDS.items():
        assert f"`steercube.analysis.per_cell.estimands.{name}`" in text
        assert (estimand.__doc__ or "").splitlines()[0] in text
    assert "Unit: nat." in text
    assert "Without unit." in text


def test_examples_are_left_out_and_equations_kept() -> None:
    text = methods()
    assert ">>>" not in text
    assert r"\sqrt{(s_+^2 + s_-^2) / 2}" in text


def test_every_section_has_its_heading_once() -> None:
    text = methods()
    assert [text.count(f"### {heading}\n") for heading in SECTIONS] == [1] * len(SECTIONS)


def test_what_a_table_documents_stands_under_a_heading_once() -> None:
    """A section that is none of them would be left out."""
    assert {section for table in TABLES for section in table.documented} == set(SECTIONS)
    text = methods()
    for table in TABLES:
        for of in (of for section in table.documented.values() for of in section):
            path = f"{of.__module__}." if hasattr(of, "__module__") else ""
            assert text.count(f"(`{path}{of.__name__}`)") == 1, of
