import pandas as pd
import pytest

from steercube.analysis.conclusions.claims import STATISTICS
from steercube.analysis.conclusions.remarks import OF_EVERY_CLAIM, ORDER


@pytest.fixture
def rows(study_tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return study_tables["claims"].set_index("id")


def test_the_caveats_of_the_claims_are_stated(rows: pd.DataFrame) -> None:
    reason = rows["reason"]
    assert "unrounded it is 6.4%" in reason["d-gap-all"]
    assert "235B-A22B on sycophancy is missing" in reason["delta-235b"]
    assert "single cells run from 47% to 79%" in reason["depth-distilled"]
    assert "leaves out coordinate_other_versions" in reason["glass-14b"]
    for claim in rows.index:
        on_answers = claim.startswith(("r-", "gen-")) or claim == "agreement-tracks-steering"
        assert ("a reader known to misread" in reason[claim]) == on_answers, claim
        assert ("cannot be checked" in reason[claim]) == on_answers, claim
    assert "the sd at -1 where it says the baseline" in reason["glass-14b"]


def test_a_change_of_answers_stands_beside_its_null_and_the_excess(
    rows: pd.DataFrame, study_tables: dict[str, pd.DataFrame]
) -> None:
    table = study_tables["agreement"].set_index(["concept", "model", "statistic"])
    for concept in ("corrigible", "sycophancy"):
        excess = table.loc[concept, "every model", "mean best generation delta less its null"]
        low, high = (f"{100 * excess[end]:.1f}%" for end in ("low", "high"))
        reason = rows.loc[f"gen-{concept}", "reason"]
        assert "it would average at least" in reason
        assert f"leaves at most {100 * excess['value']:.1f}% [{low}, {high}]" in reason


def test_every_remark_that_may_apply_has_its_place_in_the_order() -> None:
    """One that is not in the order would never be made."""
    applying = {remark for of in STATISTICS.values() for remark in of.remarks}
    assert applying | set(OF_EVERY_CLAIM) == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)
