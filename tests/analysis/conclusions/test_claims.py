from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT

from steercube.analysis.conclusions.claims import (
    STATISTICS,
    Claim,
    ledger,
    matches,
    read_claims,
    read_printed,
)
from steercube.estimate import Estimate

LEDGER = ROOT / "paper" / "claims.toml"


@pytest.fixture
def rows(study_tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return study_tables["claims"].set_index("id")


PUBLISHED = {
    "delta-4b": "9.15",
    "delta-14b": "7.54",
    "delta-8b": "6.03",
    "delta-32b": "2.96",
    "delta-30b": "9.30",
    "delta-235b": "5.64",
    "delta-distilled": "~7.5",
    "delta-rl": "~3.0",
    "concept-corrigible": "9.39",
    "concept-self-awareness": "7.75",
    "concept-sycophancy": "2.68",
    "d-distilled": "1.04",
    "d-rl": "0.97",
    "d-8b": "0.73",
    "d-32b": "0.85",
    "d-gap-all": "7%",
    "d-gap-without-8b": "15%",
    "depth-distilled": "50-65%",
    "depth-rl": "70-80%",
    "r-corrigible": "0.61",
    "r-self-awareness": "0.38",
    "r-sycophancy": "-0.06",
    "scale-sycophancy": "-",
    "scale-survival": "+",
    "moe-neutral": "0",
    "concepts-replicate": "+",
    "agreement-tracks-steering": "+",
    "glass-14b": "1.296",
    "glass-4b": "1.183",
    "glass-30b": "1.133",
    "glass-235b": "1.052",
    "glass-32b": "1.036",
    "glass-8b": "0.675",
    "gen-sycophancy": "8%",
    "gen-corrigible": "45%",
}


def test_every_published_claim_is_in_the_ledger(rows: pd.DataFrame) -> None:
    assert {i: rows.loc[i, "published"] for i in PUBLISHED} == PUBLISHED
    assert set(rows.index) - set(PUBLISHED) == {"depth-later"}


def test_every_numeric_claim_matches_to_the_printed_digits_but_one(rows: pd.DataFrame) -> None:
    """The one correlation is 0.3749, which prints as 0.37; the study printed 0.38."""
    assert rows.index[~rows["matches"]].tolist() == ["r-self-awareness", "moe-neutral"]
    assert (
        "-1.61 to 5.83, not within the ±0.64 that count as none"
        in (rows.loc["moe-neutral", "reason"])
    )
    assert rows.loc["r-self-awareness", "recomputed"] == pytest.approx(0.3749, abs=5e-5)
    assert "0.3749, 0.37 in print" in rows.loc["r-self-awareness", "reason"]


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


def test_claims_are_told_apart_by_how_they_were_printed_and_what_they_say(
    rows: pd.DataFrame,
) -> None:
    assert rows["printed_as"].value_counts().to_dict() == {
        "number": 26,
        "qualitative": 6,
        "approximate": 4,
    }
    assert set(rows.index[rows["printed_as"] == "approximate"]) == {
        *("delta-distilled", "delta-rl", "depth-distilled", "depth-rl")
    }
    interpretive = set(rows.index[rows["is_interpretive"]])
    assert interpretive == set(rows.index[rows["printed_as"] == "qualitative"]) | {
        *("d-gap-all", "d-gap-without-8b", "r-corrigible", "r-self-awareness", "r-sycophancy")
    }


@pytest.mark.parametrize(
    ("published", "moved", "passes"),
    [("+", 1.0, True), ("+", -1.0, False), ("0", 1.0, False), ("0", 0.0, True)],
    ids=["a slope", "its opposite", "no slope where there is one", "no slope"],
)
def test_a_sign_passes_its_test_or_not(
    six: xr.Dataset, published: str, moved: float, passes: bool
) -> None:
    """Effects that rise by one for a tenfold size, fall, or do not change: an interval decides."""
    size = np.log10(six["n_params"] / 1e9)
    noise = xr.DataArray([0.01, -0.02, 0.0, 0.02, -0.01, 0.0], coords={"model": six["model"]})
    effects = six["selected_estimate"] * 0 + 2 + moved * size + noise
    claim = Claim(
        id="x", section="1", text="t", published=published, statistic="scale_slope",
        arguments={"estimand": "delta", "concept": "one"},
    )  # fmt: skip
    row = ledger(six.assign(selected_estimate=effects), [claim]).iloc[0]
    assert row["printed_as"] == "qualitative"
    assert row["passes_test"] == passes


def test_every_claim_has_an_interval_and_a_verdict(rows: pd.DataFrame) -> None:
    assert rows[["low", "high"]].notna().all(axis=None)
    assert (rows["low"] < rows["high"]).all()
    assert set(rows["verdict"].drop("moe-neutral")) <= {"reproduced", "reproduced, but"}
    assert rows.loc["moe-neutral", "verdict"] == "not reproduced"
    assert (rows["reason"].str.len() > 0).all()


def test_claims_about_training_rest_on_models_not_on_items(rows: pd.DataFrame) -> None:
    about_models = ["d-distilled", "d-rl", "d-gap-all", "depth-rl", "scale-survival", "moe-neutral"]
    assert (rows.loc[about_models, "interval_over"] == "models").all()
    assert (rows.loc[["delta-4b", "d-8b", "glass-32b"], "interval_over"] == "items").all()


def test_the_balanced_version_runs_over_what_every_model_has(
    rows: pd.DataFrame, study_cells: xr.Dataset
) -> None:
    delta = study_cells["selected_estimate"].sel(estimand="delta", model="4B")
    both = delta.sel(concept=["corrigible", "self_awareness"])
    assert rows.loc["delta-4b", "balanced"] == pytest.approx(float(both.mean()))


def test_a_changed_cell_changes_the_number_the_interval_and_the_verdict(
    study_cells: xr.Dataset,
) -> None:
    _, claims = read_claims(LEDGER)
    claim = [c for c in claims if c.id == "delta-4b"]
    changed = study_cells.copy(deep=True)
    changed["selected_estimate"].loc["delta", "4B", "corrigible"] += 3
    before, after = (ledger(cells, claim).iloc[0] for cells in (study_cells, changed))
    assert after["recomputed"] == pytest.approx(before["recomputed"] + 1)
    assert after["low"] > before["low"]
    assert (before["verdict"], after["verdict"]) == ("reproduced", "not reproduced")


def test_a_ranking_without_a_part_in_common_gets_an_objection(six: xr.Dataset) -> None:
    """Effects that rank alike in every model have none, also without any of the parts."""
    claim = Claim("c", "6", "alike", "+", "concept_share", {"estimand": "cohens_d"})
    noise = np.random.default_rng(2).normal(size=(6, 3))
    reasons = []
    for slope in (0.0, 20.0):
        effects = six["selected_estimate"].transpose("estimand", "model", "concept").copy(deep=True)
        effects.loc["cohens_d"] = noise + slope * np.arange(3)
        reasons.append(ledger(six.assign(selected_estimate=effects), [claim])["reason"].item())
    assert "models with no ranking in common agree as well (p = " in reasons[0]
    assert "without a models with no ranking" in reasons[0]
    assert reasons[1] == "in direction"


def test_what_the_cells_do_not_hold_cannot_be_tested(cells: xr.Dataset) -> None:
    claim = Claim(
        id="x",
        section="1",
        text="agrees",
        published="0.5",
        statistic="pooled_agreement",
        arguments={"concept": "humour"},
    )
    row = ledger(cells, [claim]).iloc[0]
    assert row["verdict"] == "cannot be tested"
    assert row["reason"]


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("9.15", 9.1452, True),
        ("9.15", 9.1449, False),
        ("0.38", 0.3749, False),
        ("-0.06", -0.0626, True),
        ("7%", 0.0673, True),
        ("7%", 0.064, False),
        ("~7.5", 7.57, True),
        ("~7.5", 7.61, False),
        ("+", 0.2, True),
        ("-", 0.2, False),
    ],
)
def test_matching_to_the_printed_digits(text: str, value: float, expected: bool) -> None:
    assert matches(read_printed(text), Estimate(value)) is expected


@pytest.mark.parametrize(
    ("span", "expected"), [((0.574, 0.611), True), ((0.574, 0.654), True), ((0.49, 0.6), False)]
)
def test_a_range_holds_its_members_as_rounded(span: tuple[float, float], expected: bool) -> None:
    assert matches(read_printed("50-65%"), Estimate(0.6, span=span)) is expected


def test_every_whole_percent_is_within_a_range_that_ends_with_it() -> None:
    for percent in range(2, 100):
        printed = read_printed(f"1-{percent}%")
        assert matches(printed, Estimate(0.0, span=(0.01, percent / 100)))
        assert not matches(printed, Estimate(0.0, span=(0.01, (percent + 1) / 100)))


def test_no_difference_is_an_interval_with_zero() -> None:
    for low, high, expected in ((-0.09, 0.05, True), (-1, 2, False), (0.01, 0.02, True)):
        assert matches(read_printed("0"), Estimate(0.01, low=low, high=high), 0.1) is expected
    assert not matches(read_printed("0"), Estimate(0.01, low=-0.09, high=0.11), 0.1)
    assert not matches(read_printed("0.4"), Estimate(np.nan))


def entry(published: str, arguments: str = "") -> str:
    return (
        'study = "s"\n[[claim]]\nid = "a"\nsection = "1"\ntext = "t"\n'
        f'published = "{published}"\nstatistic = "model_mean"\n[claim.arguments]\n{arguments}\n'
    )


BAD_LEDGERS = {
    "not TOML": ("[[claim", "is not TOML"),
    "an unknown statistic": (
        'study = "s"\n[[claim]]\nid = "a"\nsection = "1"\ntext = "t"\npublished = "1"\n'
        'statistic = "magic"\n',
        "'magic' is none of",
    ),
    "an unreadable value": (
        'study = "s"\n[[claim]]\nid = "a"\nsection = "1"\ntext = "t"\npublished = "about 7"\n'
        'statistic = "model_mean"\n',
        "'about 7' is no printed value",
    ),
    "an unknown field": ('study = "s"\n[[claim]]\nid = "a"\ncolour = "red"\n', "claim a: .*colour"),
    "no study": ("", "`study` is missing"),
    "one bracket": ('study = "s"\n[claim]\nid = "a"\n', "two brackets"),
    "a missing argument": (entry("1"), "missing a required"),
    "an unknown argument": (entry("1", 'model = "a"\nestimand = "delta"\ncolour = 1'), "colour"),
    "an unknown estimand": (entry("1", 'model = "a"\nestimand = "luck"'), "'luck' is none of"),
    "a number for text": (entry("1").replace('"1"', "1.5"), "claim a: "),
    "a range of nothing": (entry("5-7", 'model = "a"\nestimand = "delta"'), "'5-7' is a range"),
    "also without what": (
        entry("1", 'model = "a"\nestimand = "delta"\n[[claim.also]]\nmodel = "b"'),
        "lacks `what`",
    ),
}


@pytest.mark.parametrize("name", BAD_LEDGERS)
def test_a_bad_ledger_is_one_error_with_its_file(name: str, tmp_path: Path) -> None:
    text, message = BAD_LEDGERS[name]
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_claims(tmp_path / "claims.toml")
    assert "claims.toml" in str(error.value)


def test_a_claim_of_ones_own_is_judged(cells: xr.Dataset, tmp_path: Path) -> None:
    arguments = 'model = "large"\nestimand = "cohens_d"\nconcepts = ["humour"]'
    (tmp_path / "claims.toml").write_text(entry("1.00", arguments))
    study, claims = read_claims(tmp_path / "claims.toml")
    row = ledger(cells, claims).iloc[0]
    assert (study, row["quantity"]) == ("s", "average Cohen's d")
    d = cells["selected_estimate"].sel(estimand="cohens_d", model="large", concept="humour")
    assert row["recomputed"] == float(d)
    assert row["verdict"] == "not reproduced"


def test_a_model_that_is_not_there_cannot_be_tested(cells: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text(entry("1", 'model = "huge"\nestimand = "delta"'))
    _, claims = read_claims(tmp_path / "claims.toml")
    row = ledger(cells, claims).iloc[0]
    assert (row["verdict"], row["reason"]) == (
        "cannot be tested",
        "there is no model 'huge' here, but small, middle, large",
    )


def test_the_registry_names_functions_of_the_package() -> None:
    assert all(name == function.__name__ for name, function in STATISTICS.items())


@pytest.mark.parametrize(
    ("statistic", "arguments", "said"),
    [
        ("model_mean", {"estimand": "delta", "model": "99B"}, "no model '99B' here, but small"),
        (
            "mean_over_models",
            {"estimand": "delta", "models": ["small", "99B"]},
            "no model '99B' here, but small",
        ),
        (
            "concept_mean",
            {"estimand": "delta", "concept": "envy"},
            "no concept 'envy' here, but honesty, humour",
        ),
    ],
)
def test_a_claim_about_what_is_not_there_names_it(
    cells: xr.Dataset, statistic: str, arguments: dict[str, object], said: str
) -> None:
    claim = Claim("x", "1", "t", "1.0", statistic, arguments)
    row = ledger(cells, [claim]).iloc[0]
    assert row["verdict"] == "cannot be tested"
    assert said in row["reason"]
