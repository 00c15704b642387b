import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from reid.protocols.protocol import EvaluationSplit, evaluation_splits, parse_protocol, shared_images, training_rows
from reid.protocols.splits import has_valid_query, read_folds
from shared.errors import ConfigError, DataError
from shared.manifest import build_manifest
from shared.schemas import ImageStatus, Kind, ManifestRow
from tests.rows import manifest_row

DISTRACTOR, JUNK = Kind.DISTRACTOR, Kind.JUNK
REAL = Path(os.environ.get("REID_SHARED") or Path(__file__).parents[3] / ".." / "shared") / "datasets"


def declare(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir()
        (root / name / "dataset.yaml").write_text("layout: market1501\n")
    return root


def row(split: str, identity: int | Kind, camera: int | None, number: int = 0, **changes: Any) -> ManifestRow:
    kind, person = (identity, None) if isinstance(identity, Kind) else (Kind.PERSON, identity)
    path = f"{split}/{identity}_{camera}_{number}.jpg"
    return manifest_row(split=split, path=path, kind=kind, identity=person, camera=camera, **changes)


def pairs(people: int, strangers: int) -> list[ManifestRow]:
    """Everybody once in query (camera 1) and once in gallery (camera 2), and distractors in both."""
    rows = [row(split, i, c) for split, c in (("query", 1), ("gallery", 2)) for i in range(1, people + 1)]
    return rows + [
        row(split, DISTRACTOR, c, n) for split, c in (("query", 1), ("gallery", 2)) for n in range(strangers)
    ]


def people(rows: tuple[ManifestRow, ...]) -> set[int | Kind]:
    return {found.kind if found.identity is None else found.identity for found in rows}


@pytest.mark.parametrize(
    ("text", "sources", "targets"),
    [
        ("duke2market", ("dukemtmc",), ("market1501",)),
        ("D2MA", ("dukemtmc",), ("market1501",)),
        ("prid20112viper", ("prid",), ("viper",)),
        ("viper2prid2011", ("viper",), ("prid",)),
        ("msmt17_v22prid2011", ("msmt17_v2",), ("prid",)),
        ("market1501+3dpes2prid2011+i-LIDS", ("market1501", "3dpes"), ("prid", "ilids")),
        (" market+duke2viper ", ("market1501", "dukemtmc"), ("viper",)),
    ],
)
def test_names_may_hold_digits(text: str, sources: tuple[str, ...], targets: tuple[str, ...], tmp_path: Path) -> None:
    protocol = parse_protocol(text, tmp_path)
    assert (protocol.sources, protocol.targets, protocol.supervised) == (sources, targets, False)
    assert parse_protocol(protocol.name, tmp_path) == protocol


def test_sets_of_ones_own_take_part(tmp_path: Path) -> None:
    protocol = parse_protocol("shop2+cuhk022street", declare(tmp_path, "shop2", "cuhk02", "street"))
    assert (protocol.sources, protocol.targets) == (("shop2", "cuhk02"), ("street",))


def test_an_ambiguous_protocol_lists_its_readings(tmp_path: Path) -> None:
    declare(tmp_path, "a", "a2b", "b2c", "c")
    with pytest.raises(ConfigError, match=r"2 ways: a to b2c, or a2b to c"):
        parse_protocol("a2b2c", tmp_path)
    assert parse_protocol("a2b2b2c", tmp_path).sources == ("a2b",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("duke2markt", r"unknown data set 'markt'[\s\S]*market1501 \(market, ma\)"),
        ("market", "no '2' between"),
        ("", "no '2' between"),
        ("duke2", "unknown data set ''"),
        ("duke+2market", "unknown data set ''"),
        ("duke+d2market", "twice"),
        ("market2ma", r"market1501 is source and target[\s\S]*supervised:market2ma"),
        ("market+duke2viper+duke", "dukemtmc is source and target"),
        ("msmt172msmt17_v2", "msmt17 and msmt17_v2 show the same people"),
        ("cuhk03_labeled2cuhk03", "cuhk03_labeled and cuhk03 show the same people"),
        ("market+cuhk032c3l", "cuhk03 and cuhk03_labeled show the same people"),
        ("supervised:duke2market", "no data set is both"),
        ("supervised:nobody", "unknown data set 'nobody'"),
        ("supervised:all-images:market", "would train on its test images"),
        ("all-images:market2market", "is source and target"),
    ],
)
def test_refused_protocols(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_protocol(text, tmp_path)


@pytest.mark.parametrize("text", ["supervised:market1501", "supervised:market2market", "Supervised:MA"])
def test_supervised_trains_and_tests_on_one_set(text: str, tmp_path: Path) -> None:
    protocol = parse_protocol(text, tmp_path)
    assert (protocol.sources, protocol.targets, protocol.supervised) == (("market1501",), ("market1501",), True)


def test_training_rows_are_the_train_split_or_everything(tmp_path: Path) -> None:
    protocol = parse_protocol("market+viper2grid", tmp_path)
    people = [row("train", number, 1) for number in (1, 0, -1)]
    others = [row("train", DISTRACTOR, 1), row("train", JUNK, 1), row("query", 2, 1), row("gallery", 2, 2)]
    assert training_rows(protocol, "market1501", people + others) == people
    viper = pairs(2, 1)
    assert training_rows(protocol, "viper", viper) == viper[:4]
    with pytest.raises(ConfigError, match="no train split of its own"):
        training_rows(parse_protocol("supervised:viper", tmp_path), "viper", viper)


def test_all_images_of_the_sources_are_trained_on(tmp_path: Path) -> None:
    protocol = parse_protocol("All-Images:ma+d+c2+c3+cs2prid+grid+viper+i-lids", tmp_path)
    assert protocol.sources == ("market1501", "dukemtmc", "cuhk02", "cuhk03", "cuhksysu")
    assert protocol.targets == ("prid", "grid", "viper", "ilids")
    assert parse_protocol(protocol.name, tmp_path) == protocol
    market = [
        row("train", 1, 1),
        row("query", 2, 1),
        row("gallery", 2, 2),
        row("gallery", DISTRACTOR, 1),
        row("gallery", JUNK, 1),
    ]
    assert training_rows(protocol, "market1501", market) == market[:3]
    assert "(all images) | test" in protocol.line({}, selected_on="nothing")


def test_a_fixed_split_is_one_split_without_unreadable_images(tmp_path: Path) -> None:
    rows = [
        row("train", 9, 1),
        row("query", 1, 1),
        row("query", 2, 1, status=ImageStatus.UNREADABLE),
        row("query", 0, 1),
        row("query", DISTRACTOR, 1),
        row("gallery", 1, 2),
        row("gallery", 0, 2),
        row("gallery", -1, 2),
        row("gallery", DISTRACTOR, 2),
        row("gallery", JUNK, 2),
        row("gallery", 3, 2, status=ImageStatus.UNREADABLE),
    ]
    (split,) = evaluation_splits(parse_protocol("duke2market", tmp_path), "market1501", rows)
    assert people(split.query) == {1, 0}
    assert people(split.gallery) == {1, 0, -1, DISTRACTOR, JUNK}


@pytest.mark.parametrize(
    ("target", "count", "strangers"), [("viper", 632, 0), ("prid", 200, 549), ("grid", 250, 775), ("viper", 5, 0)]
)
def test_halved_sets_search_everybody_but_the_train_half(
    target: str, count: int, strangers: int, tmp_path: Path
) -> None:
    protocol = parse_protocol(f"market2{target}", tmp_path)
    rows = pairs(count, strangers)
    splits = evaluation_splits(protocol, target, rows, seed=4)
    assert len(splits) == 10
    half = (count + 1) // 2
    for split in splits:
        assert len(split.query) == len(people(split.query)) == half
        assert people(split.gallery) - {DISTRACTOR} == people(split.query)
        assert len(split.gallery) == half + strangers
    assert len({frozenset(people(split.query)) for split in splits}) > 1


def test_draws_follow_the_seed_and_nothing_else(tmp_path: Path) -> None:
    protocol = parse_protocol("market2viper", tmp_path)
    rows = pairs(20, 0)

    def draw(rows: list[ManifestRow], **options: int) -> list[EvaluationSplit]:
        return evaluation_splits(protocol, "viper", rows, **options)

    assert draw(rows, seed=1) == draw(rows[::-1], seed=1)
    assert draw(rows, seed=1, splits=3) == draw(rows, seed=1)[:3]
    assert draw(rows, seed=1) != [*draw(rows, seed=2)]
    assert people(draw(rows, seed=1)[0].query) != people(draw(rows, seed=2)[0].query)


def test_people_missing_on_one_side_are_never_asked_for(tmp_path: Path) -> None:
    rows = pairs(6, 0)
    rows = [r for r in rows if (r.split, r.identity) not in {("gallery", 1), ("query", 2)}]
    for split in evaluation_splits(parse_protocol("market2prid", tmp_path), "prid", rows):
        assert len(split.query) == 2
        assert people(split.query) <= {3, 4, 5, 6}
        assert 2 in people(split.gallery)  # a stranger to every query


def test_published_folds_are_used_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "GRID"
    (folder / "probe").mkdir(parents=True)
    folds = [{"train_ids": [1, 2], "test_ids": [3, 4]}, {"train_ids": [3, 4], "test_ids": [1, 2]}]
    (folder / "folds.json").write_text(json.dumps(folds))
    protocol = parse_protocol("market2grid", tmp_path)
    splits = evaluation_splits(protocol, "grid", pairs(4, 3))
    assert [people(split.query) for split in splits] == [{3, 4}, {1, 2}]
    assert [(people(split.gallery), len(split.gallery)) for split in splits] == [
        ({DISTRACTOR, 3, 4}, 5),
        ({DISTRACTOR, 1, 2}, 5),
    ]
    assert len(evaluation_splits(protocol, "grid", pairs(4, 3), splits=1)) == 1
    (folder / "folds.json").write_text('[{"train_ids": [0, -2]}]')
    rows = [row(split, i, c) for split, c in (("query", 0), ("gallery", 1)) for i in (0, -2, 5)]
    (split,) = evaluation_splits(parse_protocol("market2grid", tmp_path), "grid", rows)
    assert people(split.query) == people(split.gallery) == {5}
    for damaged in ("{", "{}", "[]", '[{"ids": []}]', '[{"train_ids": []}]', '[{"train_ids": ["x"]}]'):
        (folder / "folds.json").write_text(damaged)
        with pytest.raises(DataError, match="fold"):
            parse_protocol("market2grid", tmp_path)


def partitions(path: Path, folds: list[list[int]]) -> None:
    """As GRID's archive has it: a cell per fold, in it a structure with the people in its third field."""
    cells = np.empty((1, len(folds)), dtype=object)
    for place, people in enumerate(folds):
        numbers = np.array([people], dtype=float)
        cells[0, place] = {"probe": numbers + 1000, "gallery": numbers + 2000, "people": numbers}
    savemat(path, {"trainIdxAll": cells, "features": np.zeros((3, 4))})


def test_folds_of_grids_own_archive_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "underground_reid"
    (folder / "probe").mkdir(parents=True)
    path = folder / "features_and_partitions.mat"
    partitions(path, [[1, 2], [3, 4]])
    splits = evaluation_splits(parse_protocol("market2grid", tmp_path), "grid", pairs(4, 3))
    assert [people(split.query) for split in splits] == [{3, 4}, {1, 2}]
    assert all(split.rule == "published fold" for split in splits)
    (folder / "folds.json").write_text('[{"train_ids": [1, 3]}]')  # wins
    splits = evaluation_splits(parse_protocol("market2grid", tmp_path), "grid", pairs(4, 3))
    assert [people(split.query) for split in splits] == [{2, 4}]
    (folder / "folds.json").unlink()
    savemat(path, {"trainIdxAll": np.zeros((2, 3))})
    for damaged in (path.read_bytes(), b"", b"MATLAB 5.0" + bytes(200)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="fold"):
            parse_protocol("market2grid", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="no small real data sets: set REID_SHARED")
def test_both_files_of_grid_give_the_same_splits(tmp_path: Path) -> None:
    folds = json.loads((REAL / "GRID" / "folds.json").read_text())
    partitions(tmp_path / "features_and_partitions.mat", [fold["train_ids"] for fold in folds])
    found = read_folds(tmp_path)
    assert found == read_folds(REAL / "GRID") and [len(fold) for fold in found] == [125] * 10


@pytest.mark.parametrize("count", [119, 4])
def test_single_shot_takes_two_images_of_half_the_people(count: int, tmp_path: Path) -> None:
    rows = [row("all", i, None, n) for i in range(1, count + 1) for n in range(3)] + [row("all", count + 1, None)]
    splits = evaluation_splits(parse_protocol("market2ilids", tmp_path), "ilids", rows)
    for split in splits:
        assert len(split.query) == len(split.gallery) == (count + 1) // 2
        assert [q.identity for q in split.query] == [g.identity for g in split.gallery]
        assert not set(split.query) & set(split.gallery)
        assert count + 1 not in people(split.query)  # one image only
    assert len({split.query for split in splits}) > 1


def test_single_shot_searches_another_camera_where_cameras_are_labelled(tmp_path: Path) -> None:
    rows = [row("all", i, c, n) for i in range(8) for c in (0, 1) for n in range(3)]
    rows += [row("all", 20, 0, n) for n in range(3)]
    protocol = parse_protocol("market2shop", declare(tmp_path, "shop"))
    for split in evaluation_splits(protocol, "shop", rows):
        assert all(q.camera != g.camera for q, g in zip(split.query, split.gallery, strict=True))
        assert 20 not in people(split.query)


def test_a_set_without_queries_is_no_target(tmp_path: Path) -> None:
    protocol = parse_protocol("market2towncentre", tmp_path)
    with pytest.raises(DataError, match="towncentre has no valid queries"):
        evaluation_splits(protocol, "towncentre", [row("train", 1, 1)])
    with pytest.raises(DataError, match="no valid queries"):
        evaluation_splits(protocol, "viper", [row("query", 1, 1)])


def test_the_line_above_every_table(tmp_path: Path) -> None:
    protocol = parse_protocol("market2duke+viper", tmp_path)
    fixed = evaluation_splits(protocol, "dukemtmc", [row("query", 1, 1), row("gallery", 1, 2)])
    halves = evaluation_splits(protocol, "viper", pairs(8, 0), seed=3)
    splits = {"dukemtmc": fixed, "viper": halves}
    line = protocol.line(splits, selected_on="last epoch, no model selection", trained_on={"dukemtmc": 0})
    assert line == (
        "train market1501 | test dukemtmc (fixed query and gallery) + viper (mean of 10: random half of the "
        "identities, seed 3) | last epoch, no model selection | single query, same-camera images of "
        "the query's identity removed | no re-ranking"
    )
    marked = protocol.line(splits, selected_on="last epoch, no model selection", trained_on={"viper": 1200})
    assert marked == f"{line} | 1,200 test images of viper were trained on"


def test_a_declared_copy_of_the_same_people_is_known_by_its_usual_name(tmp_path: Path) -> None:
    declare(tmp_path, "MARS", "Occluded-Duke")
    for text in ("mars2market", "duke2occluded-duke"):
        with pytest.raises(ConfigError, match="show the same people"):
            parse_protocol(text, tmp_path)
    assert parse_protocol("duke2mars", tmp_path).targets == ("mars",)


def test_targets_that_the_weights_have_seen_are_refused_or_marked(tmp_path: Path) -> None:
    seen = ("3dpes", "caviar", "cuhk03")
    with pytest.raises(
        ConfigError, match=r"pretrained on people of caviar, cuhk03_labeled;[\s\S]*allow_pretrained_targets"
    ):
        parse_protocol("market+3dpes2viper+caviar+c3l", tmp_path, pretrained_on=seen)
    assert not parse_protocol("3dpes2viper", tmp_path, pretrained_on=seen).pretrained_targets
    allowed = parse_protocol("market2viper+caviar", tmp_path, pretrained_on=seen, allow_pretrained_targets=True)
    assert allowed.pretrained_targets == ("caviar",)
    assert allowed.line({}, selected_on="last epoch").endswith(" | weights pretrained on people of caviar")
    supervised = parse_protocol("supervised:caviar", tmp_path, pretrained_on=seen)
    assert "pretrained on people of caviar" in supervised.line({}, selected_on="last epoch")


def test_test_images_that_were_trained_on_are_found_by_their_bytes(tmp_path: Path) -> None:
    rows = [row("train", 1, 1), row("query", 1, 1), row("gallery", 1, 2), row("gallery", DISTRACTOR, 1)]
    rows = [one.model_copy(update={"image_id": f"{place:016d}"}) for place, one in enumerate(rows)]
    assert shared_images({row.image_id for row in rows}, rows) == rows[1:3]
    assert shared_images(frozenset(), rows) == []


def test_a_valid_query_has_a_match_from_another_camera() -> None:
    def valid(query: tuple[int, int | None], *gallery: tuple[int, int | None]) -> bool:
        asked = row("query", query[0], 1).model_copy(update={"camera": query[1]})
        found = [
            row("gallery", one, 1, n).model_copy(update={"camera": camera}) for n, (one, camera) in enumerate(gallery)
        ]
        return has_valid_query(EvaluationSplit((asked,), tuple(found), ""))

    assert valid((1, 1), (1, 1), (1, 2)) and valid((1, None), (1, None)) and valid((1, 1), (1, None))
    assert not valid((1, 1), (1, 1), (2, 2)) and not valid((1, 1)) and not valid((1, 0), (1, 0))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not on this machine (REID_SHARED)")
@pytest.mark.parametrize(
    ("target", "sizes"),
    [("viper", (316, 316)), ("prid", (100, 649)), ("grid", (125, 900)), ("ilids", (60, 60)), ("caviar", (50, 450))],
)
def test_real_sets_give_the_published_sizes(
    target: str, sizes: tuple[int, int], tmp_path: Path, make_rows: Callable[..., Any]
) -> None:
    splits = evaluation_splits(parse_protocol(f"towncentre2{target}", REAL), target, make_rows(target, tmp_path))
    assert {(len(split.query), len(split.gallery)) for split in splits} == {sizes}


@pytest.fixture
def make_rows() -> Callable[[str, Path], list[ManifestRow]]:
    return lambda target, folder: build_manifest(target, REAL, folder / "m.parquet")
