"""People and cameras numbered from 0, from the file names to the scores: against a loop over the names."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.evaluation.ranking import Ranking
from reid.protocols.protocol import evaluation_splits, parse_protocol
from shared.manifest import build_manifest
from shared.schemas import ManifestRow

MARKET = {"query": "query", "gallery": "bounding_box_test"}
Named = tuple[str, str, int | None]  # split, identity as written, camera


def images(rng: np.random.Generator, first_person: int, first_camera: int, *, unlabelled: float = 0.0) -> list[Named]:
    """8 people in 3 cameras; of the gallery some are junk and some distractors."""
    named: list[Named] = []
    for _ in range(120):
        split = "query" if rng.random() < 0.3 else "gallery"
        who = str(first_person + rng.integers(8))
        drawn = rng.random()
        if split == "gallery" and drawn < 0.3:
            who = "junk" if drawn < 0.15 else "distractor"
        camera = None if rng.random() < unlabelled else first_camera + int(rng.integers(3))
        named.append((split, who, camera))
    return named


def naive(named: Sequence[Named], features: np.ndarray) -> tuple[float, float]:
    """mAP and Rank-1 in percent."""
    precisions, firsts = [], []
    for query, (split, who, camera) in enumerate(named):
        if split != "query":
            continue
        ranked = []
        for place, (other_split, other, other_camera) in enumerate(named):
            removed = other == who and camera is not None and camera == other_camera
            if other_split == "gallery" and other != "junk" and not removed:
                ranked.append((float(np.square(features[query] - features[place]).sum()), other == who))
        hits = [right for _, right in sorted(ranked)]
        if any(hits):
            precisions.append(np.mean([sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit]))
            firsts.append(hits[0])
    return 100 * float(np.mean(precisions)), 100 * float(np.mean(firsts))


def scored(data_root: Path, name: str, features: np.ndarray, *, re_ranking: bool = False) -> dict[str, float]:
    """Scores by way of manifest, splits and ranking; the feature of an image is that of the number in its name."""
    rows = build_manifest(name, data_root, data_root.parent / "m.parquet")
    (split,) = evaluation_splits(parse_protocol(f"duke2{name}", data_root), name, rows)

    def of(some: Sequence[ManifestRow]) -> np.ndarray:
        return features[[int(re.findall(r"\d+", row.path)[-1]) for row in some]]

    return Ranking.of(split, of, re_ranking=re_ranking).scores(50).summary()


def plant(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 4), (number, 0, 0)).save(path)


def features_of(rng: np.random.Generator, named: Sequence[Named]) -> np.ndarray:
    """Near to others of the person, and nearer to those of the same camera."""
    people, places = rng.standard_normal((2, 400, 6))
    rows = [people[int(who) if who.isdecimal() else 50] + places[camera or 0] for _, who, camera in named]
    return (np.array(rows) + 0.7 * rng.standard_normal((len(named), 6))).astype(np.float32)


@pytest.mark.parametrize("first_camera", [0, 1])
@pytest.mark.parametrize("first_person", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_market_layout_is_scored_whatever_its_numbers_start_from(
    seed: int, first_person: int, first_camera: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    named = images(rng, first_person, first_camera)
    if first_person == 0:  # in this layout 0000 is taken for distractors only while nobody asks for it
        named = [("query", "0", first_camera), *((s, "junk" if who == "distractor" else who, c) for s, who, c in named)]
    for number, (split, who, camera) in enumerate(named):
        name = {"junk": "-1", "distractor": "0000"}.get(who, f"{who:0>4}")
        plant(tmp_path / "data" / "market" / MARKET[split] / f"{name}_c{camera}s1_{number}.png", number)
    features = features_of(rng, named)
    found = scored(tmp_path / "data", "market1501", features)
    assert (found["mean_ap"], found["rank_1"]) == pytest.approx(naive(named, features))


@pytest.mark.parametrize("first", [-5, 0])
@pytest.mark.parametrize("unlabelled", [0.0, 0.3, 1.0])
def test_a_table_is_scored_with_any_numbers_and_with_cameras_left_empty(
    first: int, unlabelled: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    named = images(rng, first, first, unlabelled=unlabelled)
    root = tmp_path / "data" / "shop"
    lines = ["path,identity,camera,split"]
    for number, (split, who, camera) in enumerate(named):
        plant(root / f"{number}.png", number)
        lines.append(f"{number}.png,{who},{'' if camera is None else camera},{split}")
    (root / "images.csv").write_text("\n".join(lines) + "\n")
    (root / "dataset.yaml").write_text("layout: csv\ncsv: images.csv\njunk: [junk]\ndistractors: [distractor]\n")
    features = rng.standard_normal((len(named), 6)).astype(np.float32)
    found = scored(tmp_path / "data", "shop", features)
    assert (found["mean_ap"], found["rank_1"]) == pytest.approx(naive(named, features))


def test_camera_zero_is_not_the_same_as_no_camera(tmp_path: Path) -> None:
    root = tmp_path / "data" / "shop"
    features = np.array([[0.0], [0.1], [5.0], [1.0]], np.float32)
    for number in range(4):
        plant(root / f"{number}.png", number)
    (root / "dataset.yaml").write_text("layout: csv\ncsv: images.csv\n")
    ranks = {}
    for camera in ("0", ""):
        (root / "images.csv").write_text(
            "path,identity,camera,split\n"
            f"0.png,1,{camera},query\n1.png,1,{camera},gallery\n2.png,1,7,gallery\n3.png,2,7,gallery\n"
        )
        ranks[camera] = scored(tmp_path / "data", "shop", features)["rank_1"]
    assert ranks == {"0": 0, "": 100}
