"""The labeler's page names every setting with its default, every family, engine, status and flag."""

import re
from pathlib import Path
from typing import get_args

import pytest

from labeler.grounding import box_checks
from labeler.grounding.coordinates import FAMILIES
from labeler.grounding.ground import FILLED
from labeler.quality import list_queries
from labeler.settings import PREFIX, EngineName, Settings
from shared.schemas import LabelStatus

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "labeler" / "README.md").read_text()
FIRST_CELLS = re.findall(r"^\| (`.+?`) \|", PAGE, flags=re.MULTILINE)


def test_every_setting_is_there_with_its_default() -> None:
    rows = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \| (?:`(.*?)`)? ?\|", PAGE, flags=re.MULTILINE))
    known: dict[str, object] = {}
    for name, field in Settings.model_fields.items():
        known[name] = default = field.get_default(call_default_factory=True, validated_data=known)
        said = str(default).lower() if isinstance(default, bool) else str(default)
        assert rows.pop(name.upper()) == ("" if default is None else said), name
    assert not rows, "settings that no longer exist"


def test_every_name_that_a_row_can_hold_is_explained() -> None:
    flags = {*re.findall(r"`(\w+)`", str(box_checks.__doc__)), "prior", FILLED}
    assert len(flags) == 10
    explained = set(re.findall(r"`(\S+?)`", " ".join(FIRST_CELLS)))
    assert {*flags, *LabelStatus, *FAMILIES, *get_args(EngineName)} <= explained


def test_the_python_lines_run_as_printed(paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "person.jpg").write_bytes(paint())
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(snippet, {})
    assert capsys.readouterr().out.startswith("Box(x_min=")


def test_the_queries_it_names_exist() -> None:
    assert set(re.findall(r"Q=(\w+)", PAGE)) <= set(list_queries())
