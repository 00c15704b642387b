"""A fitted calibration says the share of pairs that show one person, and its thresholds keep their rates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.config import RunConfig
from reid.evaluation.calibration import Pairs, fit, joined, measure, pairs_of, read_calibration, write_calibration
from reid.evaluation.held_out import held_out_people
from reid.protocols.protocol import parse_protocol
from reid.training.run_folder import read_image_ids
from shared.errors import DataError, UsageError
from shared.workspace import Workspace


def drawn(people: int = 60, seed: int = 0) -> Pairs:
    """Similarities whose true probability is known: logit = 8 s - 4 at equal shares."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 1, 40_000)
    same = rng.random(len(values)) < 1 / (1 + np.exp(4 - 8 * values))
    first = rng.integers(0, people, len(values))
    other = (first + rng.integers(1, people, len(values))) % people
    return Pairs(values, same, np.stack([first, np.where(same, first, other)], 1))


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
def test_probabilities_are_the_shares(method: Any) -> None:
    found = fit(drawn(), method, model_hash="m", images=9, fitted_on=["a"])
    points = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(found.probability(points), 1 / (1 + np.exp(4 - 8 * points)), atol=0.05)
    assert found.ece < 0.02
    fresh = measure(found, drawn(seed=1))
    assert fresh["ece"] < 0.03
    assert fresh["rates"]["1e-2"]["false_accepts"] == pytest.approx(0.01, abs=0.004)
    assert found.thresholds["1e-4"] is None
    odds = found.probability(0.5, prior=0.1) / (1 - found.probability(0.5, prior=0.1))
    even = found.probability(0.5) / (1 - found.probability(0.5))
    assert odds == pytest.approx(even / 9)
    assert np.isnan(found.probability(np.nan))
    for wrong in (0, 1, -1, np.nan):
        with pytest.raises(UsageError, match="prior"):
            found.probability(0.5, prior=wrong)
    with pytest.raises(UsageError, match="1e-4 is not known"):
        found.threshold("1e-4")


def test_pairs_are_those_of_different_cameras() -> None:
    similarity = np.arange(36).reshape(6, 6) / 36
    similarity[0, 5] = np.nan
    pairs = pairs_of(similarity, ["a", "a", "b", "b", "a", "c"], [1, 1, 1, 2, None, None])
    people = list(zip("aabbac", (1, 1, 1, 2, None, None), strict=True))
    expected = [
        (similarity[i, j], one[0] == two[0])
        for i, one in enumerate(people)
        for j, two in enumerate(people)
        if i < j and (one[1] != two[1] or one[1] is None) and not np.isnan(similarity[i, j])
    ]
    assert sorted(zip(pairs.similarities, pairs.same, strict=True)) == sorted(expected)
    both = joined([pairs, pairs])
    assert len(np.unique(both.people)) == 6 and not (both.people[: len(pairs.same)] == 3).any()


def test_too_few_people_are_refused() -> None:
    with pytest.raises(UsageError, match="6 held-out people"):
        fit(drawn(6), model_hash="m", images=9, fitted_on=["a"])


def test_it_is_stored_and_only_read_for_its_model(tmp_path: Path) -> None:
    found = fit(drawn(), model_hash="m", images=9, fitted_on=["a"])
    path = write_calibration(found, tmp_path)
    assert read_calibration(tmp_path, "m") == found
    assert read_calibration(tmp_path / "other", "m") is None
    with pytest.raises(DataError, match="another state"):
        read_calibration(tmp_path, "n")
    stored = json.loads(path.read_text())
    for damage in ({"version": 2}, {"similarities": [1, 0], "probabilities": [0, 1]}, {"odd": 1}, {"similarities": []}):
        path.write_text(json.dumps({**stored, **damage}))
        with pytest.raises(DataError, match="not a readable calibration"):
            read_calibration(tmp_path, "m")


def test_held_out_people_are_those_that_training_held_out(
    workspace: Workspace,
    sources: None,
    train_run: Callable[[RunConfig, Path], None],
    run_config: Callable[..., RunConfig],
) -> None:
    config, folder = (
        run_config("data.validation_share=0.5", "stage1.identities_per_batch=2", "stage2.identities_per_batch=2"),
        workspace.training_runs / "run",
    )
    train_run(config, folder)
    protocol = parse_protocol(config.protocol, workspace.data_root)
    found = held_out_people(folder, config, protocol, workspace)
    assert {name: len({row.identity for row in rows}) for name, rows in found.items()} == {"alpha": 2, "beta": 2}
    record = json.loads((folder / "training_set.json").read_text())
    assert record["held_out_identities"] == 4 and record["images"] == 16
    assert all(row.image_id in (read_image_ids(folder) or ()) for rows in found.values() for row in rows)
    (folder / "training_set.json").write_text(json.dumps({**record, "sha256": "other"}))
    with pytest.raises(DataError, match="not what it was"):
        held_out_people(folder, config, protocol, workspace)
