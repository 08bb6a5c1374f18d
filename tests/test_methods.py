"""The registry of scores: found by name, asked for what they need and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

from ood_utils import methods, registry, scores
from ood_utils.errors import UserError


def unit(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


WHOLE = methods.Evidence(unit(20, 0), unit(5, 1), unit(9, 2), temperature=0.02, groups=3)


def test_every_file_is_a_method_in_the_order_of_its_year() -> None:
    assert list(methods.every()) == ["MSP", "MaxLogit", "Energy", "MCM", "NegLabel", "P - beta N"]
    assert all(m.source and m.needs for m in methods.every().values())


@pytest.mark.parametrize("name", methods.every())
def test_a_method_is_its_formula(name: str) -> None:
    cosines = WHOLE.images.astype(float) @ WHOLE.class_text.T.astype(float)
    p, n = (
        logsumexp(WHOLE.images.astype(float) @ texts.T.astype(float) / 0.02, axis=1)
        for texts in (WHOLE.class_text, WHOLE.negative_text)
    )
    formulas = {
        "MSP": lambda: scores.msp(cosines, 0.02), "MaxLogit": lambda: cosines.max(1),
        "Energy": lambda: scores.energy(cosines, 0.02), "MCM": lambda: scores.mcm(cosines),
        "NegLabel": lambda: scores.neglabel(WHOLE.images, WHOLE.class_text, WHOLE.negative_text, 0.02, 3),
        "P - beta N": lambda: p - 0.25 * n,
    }  # fmt: skip
    evidence = replace(WHOLE, groups=1, beta=0.25) if "beta" in name else WHOLE
    np.testing.assert_allclose(methods.find(name)(evidence), formulas[name](), rtol=1e-9)


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    once = scores.cosines
    monkeypatch.setattr(scores, "cosines", lambda *a: calls.append(1) or once(*a))
    evidence = methods.Evidence(WHOLE.images, WHOLE.class_text, WHOLE.negative_text)
    methods.find("NegLabel")(evidence)
    assert not calls
    for name in ("MCM", "MSP", "Energy"):
        methods.find(name)(evidence)
    assert calls == [1]


def test_what_a_method_needs_and_does_not_get_is_said() -> None:
    bare = methods.Evidence(WHOLE.images, WHOLE.class_text)
    assert methods.names(bare) == ["MSP", "MaxLogit", "Energy", "MCM"]
    with pytest.raises(UserError, match="NegLabel needs negative_text"):
        methods.find("NegLabel")(bare)
    with pytest.raises(UserError, match="no score is called 'NegLable'; did you mean NegLabel"):
        methods.find("NegLable")


def test_a_new_method_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from ood_utils.methods import Method\n"
        "METHOD = Method('Mean', 2030, 'nobody', ('class_text',), lambda e: e.cosines.mean(1))\n"
    )
    (tmp_path / "mean_cosine.py").write_text(text)
    known, found = registry.names("methods"), registry.find
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "names", lambda package: [*known, "mean_cosine"])
    monkeypatch.setattr(
        registry,
        "find",
        lambda package, name: __import__(name) if name == "mean_cosine" else found(package, name),
    )
    methods.every.cache_clear()
    try:
        assert methods.names(WHOLE)[-1] == "Mean" and methods.find("Mean")(WHOLE).shape == (20,)
    finally:
        methods.every.cache_clear()
