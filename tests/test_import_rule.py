"""The import rule: shared knows nobody, labeler and reid know only shared, nobody knows pipelines."""

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
    "labeler": ("torch", "torchvision", "open_clip", "matplotlib", "lightning_fabric"),
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
