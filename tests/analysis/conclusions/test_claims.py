import hashlib
from pathlib import Path

import pytest
from builders import ROOT

from steercube.analysis.conclusions.claims import STATISTICS, read_ledger
from steercube.contrast import Contrast


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
    "an unknown table": ('study = "s"\n[magic]\nx = 1\n', "`magic` is unknown"),
    "a contrast that is no table": ('study = "s"\ncontrast = "a:b"\n', "`by` is missing"),
    "a contrast of one label": (
        'study = "s"\n[contrast]\nby = "training"\nlow = "a"\nhigh = "a"\n',
        "`low` and `high` are the same label",
    ),
    "a contrast with more": (
        'study = "s"\n[contrast]\nby = "training"\nlow = "a"\nhigh = "b"\ncolour = "red"\n',
        "`colour` is unknown in .contrast.",
    ),
    "words that are none": (
        'study = "s"\n[contrast]\nby = "training"\nlow = "a"\nhigh = "b"\nwords = {a = 1}\n',
        "`words` gives a text for a label",
    ),
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
        read_ledger(tmp_path / "claims.toml")
    assert "claims.toml" in str(error.value)


def test_the_registry_names_functions_of_the_package() -> None:
    assert all(name == of.compute.__name__ for name, of in STATISTICS.items())


def test_a_ledger_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "my-claims.toml"
    own = '[contrast]\nby = "family"\nlow = "one"\nhigh = "two"\nwords = {two = "Two"}\n'
    path.write_text(entry("1.00", 'model = "a"\nestimand = "delta"') + own)
    read = read_ledger(path)
    assert (read.study, [claim.id for claim in read.claims], read.name) == ("s", ["a"], path.name)
    assert read.claims[0].arguments == {"model": "a", "estimand": "delta"}
    assert read.contrast == Contrast("family", "one", "two", {"two": "Two"})
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(entry("1.00", 'model = "a"\nestimand = "delta"'))
    assert read_ledger(path).contrast is None


def test_the_published_study_compares_full_rl_with_distillation() -> None:
    contrast = read_ledger(ROOT / "paper" / "claims.toml").contrast
    assert contrast == Contrast("training", "distilled", "rl", {"rl": "full RL"})
