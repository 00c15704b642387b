"""What README, Makefile and the compose file promise exists."""

import re
import subprocess
import tomllib
from pathlib import Path

import yaml

from labeler.settings import PREFIX, Settings
from shared.datasets import description, known_datasets, scan_dataset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))


def test_every_make_command_of_the_readme_is_a_target() -> None:
    commands = set(re.findall(r"\bmake ([a-z][a-z-]+)\b", README))
    assert {"demo", "test", "label", "train", "eval", "report", "sql"} <= commands
    assert commands <= _targets()


def test_plain_make_lists_every_target_with_a_line() -> None:
    said = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+)\s+\S", said, flags=re.MULTILINE))
    assert listed == _targets()


def test_every_file_of_the_readmes_tree_exists() -> None:
    tree = README.split("## Repository layout")[1].split("```")[1]
    folder = ROOT
    seen = 0
    for line in tree.strip().splitlines():
        words = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT / words[0]
            words = [""]
        for word in words:
            if word == "" or word.endswith(("/", ".py", ".yaml")):
                assert (folder / word).exists(), line
                seen += 1
    assert seen > 25


def test_the_examples_of_own_data_are_valid(tmp_path: Path) -> None:
    (pattern,) = re.findall(r"```yaml\n(layout: pattern.*?)```", README, flags=re.DOTALL)
    (table,) = re.findall(r"```csv\n(.*?)```", README, flags=re.DOTALL)
    named, listed = tmp_path / "named", tmp_path / "listed"
    for folder in ("train", "probe", "gallery"):
        (named / folder).mkdir(parents=True)
        (named / folder / "7_c2_001.jpg").write_bytes(b"x")
    (named / "dataset.yaml").write_text(pattern)
    (listed / "crops").mkdir(parents=True)
    for line in table.splitlines()[1:]:
        (listed / line.split(",")[0]).write_bytes(b"x")
    (listed / "dataset.yaml").write_text("layout: csv\ncsv: images.csv\n")
    (listed / "images.csv").write_text(table)
    found = scan_dataset("named", tmp_path).files
    assert [(file.split, file.identity, file.camera) for file in found] == [
        ("gallery", 7, 2),
        ("query", 7, 2),
        ("train", 7, 2),
    ]
    found = scan_dataset("listed", tmp_path).files
    assert len(found) == len(table.splitlines()) - 1
    assert len({file.identity for file in found}) == 1 and len({file.camera for file in found}) == 2


def test_the_table_of_public_data_sets_names_all_that_are_known(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`.*?)\|.*?\|.*?\|$", README.split("## Your data")[1], flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
    assert set(known_datasets(tmp_path)) <= named


def test_every_key_of_a_dataset_yaml_is_explained() -> None:
    rows = [line for line in str(description.__doc__).splitlines() if line.startswith("| `")]
    assert {re.match(r"\| `(\w+)`", row)[1] for row in rows} == set(description.Description.model_fields)
    assert "\n".join(rows) in README


def test_the_citation_file_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] and f"{{{project['version']}}}" in README


def test_the_compose_file_sets_only_variables_that_are_read() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(services["labeler"]["environment"]) <= known
    assert set(services["trainer"]["environment"]) <= known | {"DGREID_LABELER_URL"}
    for name, service in services.items():
        assert (ROOT / service["build"]["dockerfile"]).is_file(), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "published on the loopback interface only"
