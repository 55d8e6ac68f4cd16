"""What searches found is kept beside a certificate, and proven again before it counts."""

import json
import shutil

import numpy as np
import pytest
from policy_files import written

from robust_policies.certificates import decay, optimum, peak, search
from robust_policies.certificates.kept import Book, keeping
from robust_policies.errors import DivergedError
from robust_policies.evaluation.certify import PROOFS, certify_run, check_run


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("run"), "r2dn")
    assert certify_run(folder, steps=3).peak is not None
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def searches(monkeypatch):
    """Count how often something is searched for."""
    asked = []
    for where, name in ((optimum, "least_gain"), (peak, "least_peak"), (decay, "_bisected")):
        plain = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *given, plain=plain, name=name: asked.append(name) or plain(*given))
    return asked


def rewritten(folder, change):
    """Change each kept array by `change(name, array)`; None leaves it out."""
    with np.load(folder / PROOFS) as file:
        arrays = {name: change(name.partition(".")[2], file[name].copy()) for name in file.files}
    np.savez(folder / PROOFS, **{name: one for name, one in arrays.items() if one is not None})


def test_a_check_proves_what_was_kept_without_a_search(run, searches):
    assert check_run(run) == [] and not searches
    (run / PROOFS).unlink()
    assert check_run(run) == [] and {"least_gain", "least_peak", "_bisected"} == set(searches)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, one: np.full_like(one, np.nan),
        lambda name, one: one[..., None],
        lambda name, one: -one,
        lambda name, one: one * 0.9 if name.endswith(("r", "s", "gamma")) else one,
        lambda name, one: None if name.endswith(("P", "theta", "rates")) else one,
        lambda name, one: np.zeros_like(one) if name.endswith(("P", "metric", "metrics")) else one,
    ],
    ids=["nan", "shape", "sign", "smaller", "missing", "zero"],
)
def test_what_does_not_prove_it_is_searched_for_again(run, searches, change):
    rewritten(run, change)
    assert check_run(run) == [] and {"least_gain", "least_peak", "_bisected"} == set(searches)


def test_a_file_that_cannot_be_read_is_as_none(run, searches):
    for content in (b"", b"not a file of arrays", (run / PROOFS).read_bytes()[:-200]):
        (run / PROOFS).write_bytes(content)
        assert Book.load(run / PROOFS).given == {}
    assert check_run(run) == [] and searches


@pytest.mark.parametrize("name", ["gamma_raw", "peak"])
def test_an_edited_certificate_is_found_whatever_is_kept(run, name):
    certificate = json.loads((run / "certificate.json").read_text())
    if name == "peak":
        certificate["peak"]["gamma"] = [gain / 2 for gain in certificate["peak"]["gamma"]]
    else:
        certificate[name] /= 2
    (run / "certificate.json").write_text(json.dumps(certificate))
    rewritten(run, lambda name, one: one / 2 if name.endswith("gamma") else one / 4 if name[-1] in "rs" else one)
    assert any(name in line for line in check_run(run))


def test_what_is_kept_of_another_policy_is_not_looked_at(run, tmp_path, searches):
    other = written(tmp_path / "other", "r2dn", seed=1)
    shutil.copy(run / PROOFS, other / PROOFS)
    certify_run(other, steps=3)
    searches.clear()
    shutil.copy(run / PROOFS, other / PROOFS)
    assert check_run(other) == [] and searches


def test_nothing_is_kept_outside_of_a_book_or_of_a_failed_certificate(run, monkeypatch):
    book = Book()
    with pytest.raises(DivergedError), keeping(book):
        raise DivergedError("no")
    assert search.kept.asked("least gain", None) == "" and not book.used
    before = (run / PROOFS).read_bytes()
    monkeypatch.setattr("robust_policies.evaluation.certify.peak_witness", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        certify_run(run, steps=3)
    assert (run / PROOFS).read_bytes() == before
