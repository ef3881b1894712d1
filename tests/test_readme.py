"""What the README says of the study is what the committed results say."""

import json
import re
import tomllib

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, STUDY, needs_study

from steercube.analysis.conclusions.claims import read_ledger
from steercube.analysis.conclusions.grades import (
    CANNOT_SAY,
    CONFOUNDED,
    GRADES,
    SUPPORTED,
    UNDECIDED,
)
from steercube.analysis.conclusions.tables import TABLES, listed
from steercube.answers import answer_of
from steercube.cli import parser
from steercube.concepts import read_concepts
from steercube.cube import open_cube
from steercube.models import read_facts, read_models
from steercube.netcdf import load_attrs
from steercube.published_study import study_cube, study_files
from steercube.report.post import PACKAGED

WRITTEN = {f"tables/{table.name}.csv" for table in TABLES}
README = (ROOT / "README.md").read_text()
TEXT = " ".join(README.split())
COMMANDS = [
    line
    for text in (README, (ROOT / "data" / "README.md").read_text())
    for line in text.splitlines()
    if "steercube collect --" in line
]


@pytest.fixture(scope="module")
def numbers() -> dict[str, dict[str, float]]:
    return json.loads((ROOT / "paper" / "qwen3" / "numbers.json").read_text())


def percent(value: float) -> str:
    return f"{100 * value:.0f}%".replace("-", "−")


def test_the_training_gap(numbers: dict[str, dict[str, float]]) -> None:
    gap = numbers["claims/d-gap-all"]
    assert f"[{percent(gap['low'])}, {percent(gap['high'])}] over models" in TEXT
    primary = numbers[
        "contrast_effect/cohens_d/hierarchical, exact/items, concepts, models/training and scale"
    ]
    shown = f"{primary['value']:.2f} d [{primary['low']:.2f}, {primary['high']:.2f}]"
    assert f"with scale held fixed {shown.replace('-', '−')}" in TEXT
    design = pd.read_csv(ROOT / "paper" / "qwen3" / "tables" / "design.csv")
    of = design[(design["outcome"] == "cohens_d") & (design["kind"] == "needed")]
    settled = of[of["effect_from"] == "small"].iloc[0]
    assert (settled["n_concepts"], settled["effect"]) == (6, 0.2)
    assert f"{settled['n_high']:.0f} models of each training would settle 0.2 d" in TEXT


def test_what_is_said_to_be_supported() -> None:
    table = pd.read_csv(ROOT / "paper" / "qwen3" / "tables" / "conclusions.csv").set_index("id")
    assert table.loc[table["grade"] == SUPPORTED].index.tolist() == [
        *("ranking", "agreement-corrigible")
    ]
    found = table.loc["ranking"]
    shown = f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
    assert f"models rank the concepts alike (share of variance in common {shown})" in TEXT
    assert table.loc["training-best-depth", "grade"] == CONFOUNDED
    assert "size (no overlap; with it" in table.loc["training-best-depth", "confounded_with"]


def test_steering_works_in_every_pair_that_was_run() -> None:
    effects = pd.read_csv(ROOT / "paper" / "qwen3" / "tables" / "effects.csv")
    run = effects["cohens_d"].notna()
    assert set(effects.loc[run, "steers"]) == {"yes"}
    assert f"By a test over all layers steering works in all {run.sum()} pairs" in TEXT


def test_none_of_smollm2s_concepts_steers() -> None:
    found = json.loads((ROOT / "paper" / "smollm2" / "numbers.json").read_text())
    assert found["counts/pairs that steer"]["value"] == 0
    p = found["counts/smallest corrected p of steering"]["value"]
    text = " ".join((ROOT / "data" / "README.md").read_text().split())
    assert f"none of the six concepts steers (smallest p, corrected for six: {p:.2g})" in text


def test_how_many_claims_are_met_and_how_many_stand(
    numbers: dict[str, dict[str, float]],
) -> None:
    def count(name: str) -> int:
        return int(numbers[f"counts/{name}"]["value"])

    met, printed = count("printed numbers met to the digit"), count("printed numbers")
    assert f"of {printed} printed numbers {met} can be recomputed to the digit" in TEXT
    counted = {grade: count(f"interpretive claims: {grade}") for grade in GRADES}
    assert {grade: n for grade, n in counted.items() if n} == {
        **{SUPPORTED: 2, CONFOUNDED: 1, UNDECIDED: 6, CANNOT_SAY: 2}
    }
    interpretive = f"of {count('interpretive claims')} claims that something differs, rises or"
    assert f"{interpretive} agrees, or does not, these data support three" in TEXT
    assert "Six claims are undecided, two this design cannot say" in TEXT


def test_the_misread_answers(numbers: dict[str, dict[str, float]]) -> None:
    of = "readings/self_awareness/32B/{}".format
    misread = numbers[of("responses/B/A/Answer: (X) ...")]
    assert misread["value"] == misread["n"]
    taken = f"took {misread['value']:,.0f} answers of 32B, `Answer: (B) ...`, for (A)"
    assert taken in TEXT
    anew, published = (
        [numbers[of(f"{name}/{reading}")]["value"] for name in ("best change", "r with the logits")]
        for reading in ("read anew", "published")
    )
    assert f"change by {percent(anew[0])} instead of {percent(published[0])}" in TEXT
    assert f"r with the logits is {anew[1]:.2f} instead of {published[1]:.2f}" in TEXT


def test_what_is_said_of_capability(numbers: dict[str, dict[str, float]]) -> None:
    of = "capability/every/{}".format
    assert numbers[of("smallest p, corrected (Holm)")]["value"] > 0.05
    name = "largest of the losses beyond which intervals over models exclude all"
    excluded = f"losses above {100 * numbers[of(name)]['value']:.1f} points are excluded"
    assert excluded in TEXT
    assert excluded in " ".join((ROOT / "CHANGELOG.md").read_text().split())


def test_the_ledgers_caveat_on_sycophancy() -> None:
    """Of the published reader, in the runs with sycophancy's own vector on its items."""
    table = pd.read_csv(ROOT / "paper" / "qwen3" / "tables" / "readers.csv")
    own = table[(table["concept"] == "sycophancy") & (table["direction"] == "sycophancy")]
    misread = own.loc[(own["statistic"] == "misread") & (own["read_as"] == "B"), "value"]
    said = f"it took {misread.min():.0%} to {misread.max():.0%} of the answers that choose (B)"
    caveats = [c.caveat for c in read_ledger(ROOT / "paper" / "claims.toml").claims]
    assert sum(said in caveat for caveat in caveats) == 2
    assert (misread == 1).sum() == 5


def test_what_is_said_of_the_studys_responses(numbers: dict[str, dict[str, float]]) -> None:
    text = " ".join((ROOT / "data" / "README.md").read_text().split())
    for model, share in {"14B": "97% of 14B's", "32B": "80% of 32B's"}.items():
        of = f"agreement/self_awareness/{model}/"
        alike = numbers[f"{of}share of responses read as published"]["value"]
        assert share.startswith(percent(alike))
        assert share in text
        counted = numbers[f"readings/self_awareness/{model}/responses/B/A/Answer: (X) ..."]
        assert f"{counted['value']:,.0f} of {model}'s" in text
        letter_a = numbers[f"readings/self_awareness/{model}/misread/A"]
        assert letter_a["value"] == 0
        r = numbers[f"{of}r of the published and the counted generation curve"]["value"]
        assert f"{r:.2f} ({model})" in text


@needs_study
def test_what_is_said_of_the_first_twenty_items(study_cells: xr.Dataset) -> None:
    """Read as the study did; their unsteered rates say that the published ones are of them."""
    cube = study_cube(study_files(STUDY), read_facts(ROOT / "data" / "models.toml"))
    text = " ".join((ROOT / "data" / "README.md").read_text().split())
    found = []
    for model in ("14B", "32B"):
        at = {"model": model, "concept": "self_awareness"}
        twenty = cube["generation_match"].sel(at).sel(sample=slice(0, 19), reading="published")
        rate = twenty["generation_match"].mean("sample")
        delta = rate.sel(strength=1.0) - rate.sel(strength=-1.0)
        logit = study_cells["estimate"].sel(at).sel(estimand="delta", layer=delta["layer"])
        known = (delta.notnull() & logit.notnull()).values
        found.append(np.corrcoef(delta.values[known], logit.values[known])[0, 1])
        unsteered = float(study_cells["generation_rate"].sel(at).sel(strength=0).mean())
        assert float(rate.sel(strength=0).mean()) == pytest.approx(unsteered, abs=0.03)
    assert f"r = {found[0]:.2f} (14B) and {found[1]:.2f} (32B)" in text


def test_the_outlines_tables_and_figures_have_their_places() -> None:
    text = (ROOT / "paper" / "README.md").read_text()
    assert [f"| table {n}" in text for n in range(1, 7)] == [True] * 6
    assert [f"| figure {n}" in text for n in range(1, 4)] == [True] * 3
    for name in re.findall(r"`((?:tables|figures)/[\w.]+)`", text):
        assert name in WRITTEN or (ROOT / "paper" / "qwen3" / name).exists(), name
    headings = (PACKAGED / "post.md.j2").read_text()
    sections = re.findall(r'"([A-Z][^"]+)"', text)
    assert len(sections) > 5
    for heading in sections:
        of_several = heading.removesuffix(" across models")
        assert re.search(rf"^### .*{re.escape(of_several)}", headings, re.MULTILINE), heading
    claims = {claim.id for claim in read_ledger(ROOT / "paper" / "claims.toml").claims}
    named = re.findall(r"`((?:delta|d|concept|depth|r)-[\w-]*)`", text)
    assert named
    for name in named:
        assert name in claims or (name.endswith("-") and any(i.startswith(name) for i in claims))


def test_every_table_is_listed_with_what_it_holds() -> None:
    lines = README.splitlines()
    assert [line for line in listed() if line not in lines] == []
    named = {f"tables/{name}" for name in re.findall(r"`(?:tables/)?(\w+\.csv)`", README)}
    assert named == WRITTEN


def test_every_file_and_command_it_names_exists() -> None:
    for name in ("data/README.md", "CITATION.cff", "paper/qwen3/tables/claims.md"):
        assert name in README
        assert (ROOT / name).exists()
    sessions = (ROOT / "noxfile.py").read_text()
    models = read_models(ROOT / "data" / "models.toml")
    for session in ("analyze", "tests", "import-study", "collect-smollm2", "collect-8b"):
        assert f"nox -s {session}" in README
        made = session.removeprefix("collect-") in {name.lower() for name in models}
        assert made or f"def {session.replace('-', '_')}(" in sessions
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[:60])
def test_every_collect_command_is_understood(line: str) -> None:
    arguments = line[line.index("steercube collect") :].split("#")[0].strip(" '\n").split()
    assert parser().parse_args(arguments[1:]).out


def test_what_is_said_of_the_sweep_that_hardly_steers() -> None:
    tables = ROOT / "paper" / "smollm2" / "tables"
    effects, layers = (pd.read_csv(tables / f"{n}.csv") for n in ("effects", "layer_effects"))
    text = " ".join((ROOT / "data" / "README.md").read_text().split())
    assert f"from -1 to +1 is {effects['delta'].max():.3f} nat" in text
    away = effects[(effects["delta_low"] > 0) | (effects["delta_high"] < 0)]
    (low,), (high,) = away["delta_low"], away["delta_high"]
    assert f"excludes 0, barely: {away['concept'].item()}, [{low:.4f}, {high:.4f}] nat" in text
    assert (effects["delta_corrected"] < 0).sum() == 5
    assert "five of the six changes are negative" in text
    ranks = pd.read_csv(tables / "ranks.csv")
    p = ranks[ranks["estimand"] == "cohens_d"].set_index("concept")["rank_p"]
    assert p.index[p == 0.05].tolist() == ["corrigibility"]
    assert f"in {percent(1 - 0.95**6)} of such sweeps" in text
    others = p[p > 0.05]
    assert f"p from {others.min():.2f} to {others.max():.2f}" in text
    letter = pd.read_csv(tables / "letter.csv")
    push = -letter["letter_shift"]
    assert f"by {push.min():.1f} to {push.max():.1f} nats from -1 to +1 at layer 24" in text
    assert (letter["layer"] == 24).all()
    most = letter.loc[letter["share"].idxmax()]
    assert f"at most {percent(most['share'])} of a vector ({most['concept']})" in text
    cube = open_cube(ROOT / "data" / "smollm2.nc")
    far = float(cube["kl_unsteered"]["kl_unsteered"].sel(strength=4.0).mean())
    assert f"{far:.3f} nat from the unsteered one" in text
    mass = cube["answer_mass"]["answer_mass"].mean(["model", "concept", "layer", "sample"])
    steered = mass.sel(strength=[0.0, 1.0, 2.0, 4.0])
    assert f"P(A) + P(B) stays at {float(steered.mean()):.2f}" in text
    halves = layers["split_half_cosine"]
    assert f"runs from {halves.min():.2f} to {halves.max():.2f}" in text
    assert layers["pairwise_cosine"].between(-0.0125, -0.011).all()


def test_what_is_said_of_its_answers() -> None:
    cube = open_cube(ROOT / "data" / "smollm2.nc")
    text = " ".join((ROOT / "data" / "README.md").read_text().split())
    texts = cube["responses"]["text"].values
    assert f"{len(texts):,} responses, an unsteered one counted once" in text
    valid = np.mean([answer_of(t) != "" for t in texts])
    assert f"{percent(valid)} of the responses make a valid choice" in text
    agreement = pd.read_csv(ROOT / "paper" / "smollm2" / "tables" / "agreement.csv")
    letters = [answer_of(t) for t in texts]
    assert (
        f"{percent(letters.count('B') / (len(letters) - letters.count('')))} of those are (B)"
        in text
    )
    best = agreement[agreement["statistic"] == "best generation delta"]
    assert len(best) == 6
    assert f"(p from {best['p_value'].min():.2f} to {best['p_value'].max():.2f})" in text
    held_out = 100 * best["corrected"]
    assert f"a change of {held_out.min():.0f} to {held_out.max():+.0f} points" in text


def test_the_shipped_sweep_is_the_one_of_its_manifest() -> None:
    manifest = json.loads((ROOT / "data" / "smollm2.manifest.json").read_text())
    for name, sha in manifest["content_sha256"].items():
        assert load_attrs(ROOT / "data" / name)["content_sha256"] == sha
    concepts = read_concepts(ROOT / "data" / "concepts")
    asked = json.loads(manifest["attributes"]["inputs_sha256"])
    assert asked == {name: concept.sha256 for name, concept in concepts.items()}


def test_the_pins_meet_the_declared_ranges() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"].values()
    named = [*declared["dependencies"], *(name for extra in extras for name in extra)]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for requirement in named:
        name = requirement.split(">=")[0]
        assert name.lower() in {pin.lower() for pin in pins}, f"{name} has no pin"
