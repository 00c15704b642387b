"""The import rule: shared imports none of ours, labeler and reid only shared, nobody pipelines; and inside labeler and
reid a room imports only from rooms on lower floors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared", "labeler", "reid", "pipelines")
MAY_IMPORT = {
    "shared": {"shared"},
    "labeler": {"labeler", "shared"},
    "reid": {"reid", "shared"},
    "pipelines": set(PACKAGES),
}
MUST_WORK_WITHOUT = {
    "shared": ("torch", "torchvision", "open_clip", "fastapi", "httpx", "uvicorn", "matplotlib"),
    "labeler": ("torch", "torchvision", "open_clip", "matplotlib", "lightning_fabric", "ray"),
    "reid": ("fastapi", "httpx", "uvicorn", "vllm", "transformers"),
}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _ours(source: str) -> set[str]:
    """Top-level packages of ours that a source text imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
    return found & {*PACKAGES, "."}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_rule_allows(package: str) -> None:
    files = _files(package)
    assert files
    offenders = {
        str(file.relative_to(ROOT)): sorted(extra)
        for file in files
        if (extra := _ours(file.read_text()) - MAY_IMPORT[package])
    }
    assert not offenders


def test_the_scanner_sees_imports_at_any_depth() -> None:
    assert _ours(
        "def f():\n    from reid.training.losses import x\nimport labeler.service.app as y, os\nfrom . import z"
    ) == {
        "reid",
        "labeler",
        ".",
    }


@pytest.mark.parametrize("package", sorted(MUST_WORK_WITHOUT))
def test_a_package_works_without_the_other_halves_libraries(package: str) -> None:
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in _files(package)]
    modules = [module for module in modules if not module.endswith("__main__")]
    optional = [m for m in modules if "local_transformers" in m]  # torch by nature
    script = (
        "import sys, importlib\n"
        f"for name in {MUST_WORK_WITHOUT[package]!r}: sys.modules[name] = None\n"
        f"for name in {[m for m in modules if m not in optional]!r}: importlib.import_module(name)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


# From the ground up. A room is a subpackage or a module of the package; rooms of one floor do not import each other.
FLOORS = {
    "labeler": (
        {"pocket"},
        {"grounding"},
        {"settings"},
        {"engines"},
        {"service"},
        {"annotation"},
        {"exchange", "quality", "queries", "grounder"},
        {"review"},
        {"__init__", "__main__"},
    ),
    "reid": (
        {"config", "metrics", "protocols", "pocket", "presets"},
        {"data"},
        {"model"},
        {"inference"},
        {"training"},
        {"evaluation"},
        {"retrieval"},
        {"report"},
        {"__init__"},
    ),
}
ALLOWED_UPWARD = {  # (importing module, imported room): to be emptied, never to be added to
}


def _imported_modules(source: str) -> set[str]:
    """Full names of everything that a source text imports; of `from a import b` both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _room(module: str) -> str:
    return (*module.split("."), "__init__")[1]


def _upward(module: str, source: str) -> set[str]:
    """Rooms of the same package that `module` imports from without being on a higher floor."""
    package = module.split(".")[0]
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    imported = {_room(name) for name in _imported_modules(source) if name.split(".")[0] == package}
    others = imported & floor_of.keys() - {_room(module), "__init__"}  # the package itself, and names that it exports
    return {room for room in others if floor_of[room] >= floor_of[_room(module)]}


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_every_room_has_a_floor(package: str) -> None:
    assert {_room(_module(file)) for file in _files(package)} <= set().union(*FLOORS[package])


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_rooms_import_only_from_lower_floors(package: str) -> None:
    upward = {(_module(file), room) for file in _files(package) for room in _upward(_module(file), file.read_text())}
    allowed = {(module, room) for module, room in ALLOWED_UPWARD if module.split(".")[0] == package}
    assert not upward - allowed
    assert not allowed - upward, "no longer needed: remove it from ALLOWED_UPWARD"


def test_the_scanner_sees_upward_imports_in_every_form() -> None:
    source = """
def f():
    from labeler.service.logs import log_as_json
import labeler.annotation.client as c, labeler.grounding.engine
from labeler import quality, settings
from labeler.engines import answers
from shared import errors
"""
    assert _upward("labeler.engines.replicas", source) == {"service", "annotation", "quality"}
    assert _upward("labeler", "from labeler.grounder import Grounder") == set()
    assert _upward("reid.metrics.scores", "import reid.config") == {"config"}, "on the same floor"
