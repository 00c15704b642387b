"""What README, Makefile and the compose file promise exists."""

import re
import subprocess
from pathlib import Path

import yaml

from labeler.settings import PREFIX, Settings

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
    tree = README.split("## The house")[1].split("```")[1]
    folder = ROOT
    seen = 0
    for line in tree.strip().splitlines():
        words = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT / words[0]
            words = [""]
        for word in words:
            if word == "" or "/" in word or word.endswith((".py", ".yaml")):
                assert (folder / word).exists(), line
                seen += 1
    assert seen > 40


def test_the_compose_file_sets_only_variables_that_are_read() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(services["labeler"]["environment"]) <= known
    assert set(services["trainer"]["environment"]) <= known | {"DGREID_LABELER_URL"}
    for name, service in services.items():
        assert (ROOT / service["build"]["dockerfile"]).is_file(), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "published on the loopback interface only"
