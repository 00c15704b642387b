"""The benchmark of the method's pieces on two tiny data sets: rows, seeds, and what is done only once."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.__main__ import run
from pipelines.recipes.benchmark import ROWS
from shared.workspace import Workspace
from tests.pipelines.test_commands import MINI

SHORT = [*MINI, "stage1.epochs=1", "stage2.epochs=1", "stage2.identities_per_batch=2", "stage2.images_per_identity=2"]


@pytest.fixture
def bench() -> Callable[..., int]:
    common = ["bench-dg", "--protocol", "3dpes2caviar", "--preset", "tiny", "--engine", "body_prior"]
    return lambda *more: run([*common, *more, *SHORT])


def test_every_row_and_seed_is_trained_once_and_lands_in_the_table(
    bench: Callable[..., int], workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = workspace.runs_root / "bench"
    assert bench("--seeds", "1") == 0
    first = _rows(folder)
    assert [row["name"] for row in first.values()] == [row.name for row in ROWS]
    assert all(row["seeds"] == [0] and set(row["targets"]) == {"caviar", "mean"} for row in first.values())
    trained = {row.name for row in ROWS if row.trained}
    assert {path.name for path in (folder / "dg").iterdir()} == {f"{name}-seed0" for name in trained}
    scores = json.loads((folder / "dg" / "no_parts-seed0" / "scores.json").read_text())["scores"]["caviar"]
    assert first["untrained"]["targets"]["caviar"]["mean_ap"]["mean"] == scores["untrained"]["mean_ap"]
    assert first["no_parts"]["targets"]["caviar"]["rank_1"]["by_seed"] == {"0": scores["trained"]["rank_1"]}
    assert first["no_parts"]["targets"]["caviar"]["mean_ap"]["std"] is None

    kept = {path: path.stat().st_mtime_ns for path in (folder / "dg").rglob("latest.pt")}
    assert bench("--seeds", "2") == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished row is not trained again"
    second = _rows(folder)
    method = second["method"]
    assert method["seeds"] == [0, 1] and method["targets"]["caviar"]["mean_ap"]["std"] is not None
    both = [method["targets"]["mean"]["mean_ap"]["by_seed"][s] - _of(second, "no_parts", s) for s in ("0", "1")]
    assert list(method["mean_ap_over_no_parts"]["by_seed"].values()) == pytest.approx(both)
    page, text = (folder / "dg.html").read_text(), (folder / "dg.md").read_text()
    figure, *tables = re.split(r"<h3[^>]*>", page)
    assert [table.split("</h3>")[0] for table in tables] == ["mAP", "Rank-1"] and "<svg" in figure
    assert all(row.title in place for row in ROWS for place in (figure, *tables))
    assert all(text.count(f"| {row.title} ") == 2 for row in ROWS)

    capfd.readouterr()
    assert bench("stage2.lr=1e-4") == 2, "the rows of a table are all trained alike"
    assert "stage2.lr" in capfd.readouterr().err


def test_rows_differ_from_the_method_in_what_their_name_says(bench: Callable[..., int], workspace: Workspace) -> None:
    from reid.config import read_config

    assert bench("--seeds", "1") == 0
    configs = {row.name: read_config(workspace.runs_root / "bench" / "dg" / f"{row.name}-seed0") for row in ROWS[1:]}
    method = configs.pop("method").model_dump()
    assert method["data"]["label_run"] == "bench-grounder"
    differing = {name: _differences(method, config.model_dump()) for name, config in configs.items()}
    assert differing == {
        "no_parts": {"model.parts", "data.label_run"},
        "prior_boxes": {"data.label_run"},
        "no_mask_loss": {"stage2.losses.mask_bce", "stage2.losses.mask_dice"},
        "no_text": {"stage2.losses.text"},
        "no_memory": {"stage2.losses.memory"},
    }


def _rows(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((folder / "dg.json").read_text())["rows"]}


def _of(rows: dict[str, dict], name: str, seed: str) -> float:
    return rows[name]["targets"]["mean"]["mean_ap"]["by_seed"][seed]


def _differences(one: dict, other: dict, prefix: str = "") -> set[str]:
    found = set()
    for key in one:
        if isinstance(one[key], dict):
            found |= _differences(one[key], other[key], f"{prefix}{key}.")
        elif one[key] != other[key]:
            found.add(prefix + key)
    return found
