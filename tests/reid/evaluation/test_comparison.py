import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import run as command
from reid.config import load_config
from reid.evaluation.comparison import compare_runs, comparison_table
from reid.evaluation.results import SCORE_NAMES
from shared.errors import ConfigError

AddRun = Callable[..., Path]


@pytest.fixture
def add_run(tmp_path: Path) -> AddRun:
    """A scored run with one target, whose trained scores are `value` and whose untrained ones are 1."""

    def add(name: str, value: float, *overrides: str, re_ranking: bool = False) -> Path:
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        config = load_config("tiny", overrides, protocol="alpha2gamma").model_dump(mode="json")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        states = {"trained": dict.fromkeys(SCORE_NAMES, value), "untrained": dict.fromkeys(SCORE_NAMES, 1.0)}
        scores: dict[str, Any] = {"protocol": "a line", "re_ranking": re_ranking, "scores": {"gamma": states}}
        (folder / "scores.json").write_text(json.dumps(scores))
        return folder

    return add


def test_seeds_of_one_setting_are_one_group(add_run: AddRun) -> None:
    values = [10.0, 14.0, 30.0]
    with_parts = [add_run(f"with{seed}", value, f"seed={seed}") for seed, value in enumerate(values)]
    without = add_run("without", 5.0, "seed=7", "model.parts=[]")
    first, second = compare_runs([*with_parts, without])
    assert first["settings"] == ['model.parts=["head","upper_body","legs"]']
    assert second["settings"] == ["model.parts=[]"]
    assert (first["seeds"], second["seeds"]) == ([0, 1, 2], [7])
    trained = first["scores"]["gamma"]["trained"]
    assert trained["mean"]["mean_ap"] == pytest.approx(18)
    assert trained["std"]["rank_1"] == pytest.approx(statistics.stdev(values))
    assert second["scores"]["gamma"]["trained"] == {"mean": dict.fromkeys(SCORE_NAMES, 5.0)}
    header, rows = comparison_table([first, second])
    assert header[:5] == ("target", "settings", "model", "runs", "mAP")
    assert [row[:4] for row in rows] == [
        ("gamma", *first["settings"], "trained", "3"),
        ("gamma", *second["settings"], "trained", "1"),
        ("gamma", *first["settings"], "untrained", "3"),
        ("gamma", *second["settings"], "untrained", "1"),
    ]
    assert rows[0][4] == "18.0 ± 10.6" and rows[1][4] == "5.0"


def test_re_ranked_scores_are_a_group_of_their_own(add_run: AddRun) -> None:
    plain, re_ranked = add_run("a", 1.0), add_run("b", 2.0, "seed=1", re_ranking=True)
    groups = compare_runs([plain, re_ranked])
    assert [group["settings"] for group in groups] == [["re_ranking=false"], ["re_ranking=true"]]


def test_the_same_run_does_not_count_twice(add_run: AddRun) -> None:
    once = add_run("once", 1.0)
    with pytest.raises(ConfigError, match="once and once have the same settings and seed"):
        compare_runs([once, once])
    with pytest.raises(ConfigError, match="no run was named"):
        compare_runs([])


def test_the_command_prints_and_writes_the_groups(
    add_run: AddRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    folders = [add_run("a", 1.0), add_run("b", 2.0, "seed=1")]
    assert command(["compare", "a", str(folders[1]), "--out", str(tmp_path / "out.json")]) == 0
    assert "1.5 ± 0.7" in capfd.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == compare_runs(folders)
    assert command(["compare", "a", "nothing"]) == 2
    assert "no such training run" in capfd.readouterr().err
