"""What a label run is bound to."""

from pathlib import Path

import pytest

from labeler.annotation.label_run import open_label_run
from labeler.grounding.answers import LabelSource
from shared.errors import ConfigError
from shared.geometry import Box
from shared.labels import label_folder, read_record, write_label_shard
from tests.rows import label_row, manifest_row

OURS = LabelSource(engine="e", model="m", prompt_version="p", parts=("head",))


@pytest.mark.parametrize("other", [{"engine": "x"}, {"model": "x"}, {"prompt_version": "x"}])
def test_rows_of_others_in_a_run_without_a_record_stay_alone(other: dict[str, str], tmp_path: Path) -> None:
    rows = [label_row(manifest_row(1), box=Box(1, 2, 3, 4)), label_row(manifest_row(2), box=Box(1, 2, 3, 4), **other)]
    write_label_shard(rows, label_folder(tmp_path, "first", "toy", "train"))
    with pytest.raises(ConfigError, match=r"has rows of .* 'x'.*no record"):
        open_label_run(tmp_path, "first", OURS)
    assert read_record(tmp_path, "first") is None


def test_our_own_rows_are_continued_when_the_record_is_lost(tmp_path: Path) -> None:
    write_label_shard([label_row(manifest_row())], label_folder(tmp_path, "first", "toy", "train"))
    open_label_run(tmp_path, "first", OURS)
    assert (read_record(tmp_path, "first") or {})["engine"] == "e"
