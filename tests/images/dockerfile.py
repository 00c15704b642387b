"""A Dockerfile's steps in a folder and a fresh virtual environment, where no container can be built.

COPY copies into the folder, pip runs in the environment, apt-get's packages are only looked up, users are not made.
Any other step is refused: nothing is passed over in silence.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOUNTED = ("/data", "/runs", "/models", "/tmp")


@dataclass
class Image:
    """What an image starts, and where its steps left it."""

    folder: Path  # stands for /
    base: str = ""
    work: Path = Path()
    variables: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    user: str = ""
    packages: list[str] = field(default_factory=list)  # of the system

    @property
    def environment(self) -> Path:
        return self.folder / "venv"

    def variables_here(self, **more: str) -> dict[str, str]:
        """The process's variables: those of the image, with mounted folders inside `folder`, and none of ours."""
        found = {name: self._here(value) for name, value in self.variables.items()}
        found.setdefault("HOME", str(self.folder / "home"))
        return {"PATH": f"{self.environment / 'bin'}:{os.defpath}", "LANG": "C.UTF-8", **found, **more}

    def _here(self, value: str) -> str:
        inside = any(value == place or value.startswith(f"{place}/") for place in MOUNTED)
        return str(self.folder / value[1:]) if inside else value

    def command(self, *words: str) -> list[str]:
        """The entry point with its program in `folder` or in the environment."""
        return [self._program(self.entrypoint[0]), *self.entrypoint[1:], *words]

    def _program(self, name: str) -> str:
        if name.startswith("/"):
            return str(self.folder / name[1:])
        return shutil.which(name, path=self.variables_here()["PATH"]) or name


def built(dockerfile: Path, folder: Path, python: Path | None = None) -> Image:
    """Follow the steps of a Dockerfile.

    Args:
        python: an environment that stands for the base image; by default a fresh one is made.
    """
    image = Image(folder, work=folder)
    for place in MOUNTED:
        (folder / place[1:]).mkdir(parents=True)
    (folder / "home").mkdir()
    if python:
        (folder / "venv").symlink_to(python)
    else:
        venv.create(folder / "venv", with_pip=True)
    for word, rest in _steps(dockerfile.read_text()):
        match word:
            case "FROM":
                image.base = rest
                if rest.startswith("python:"):
                    assert rest.startswith("python:{}.{}.".format(*sys.version_info)), (
                        f"{rest}: the tests run with another Python"
                    )
            case "WORKDIR":
                image.work = folder / rest.lstrip("/")
                image.work.mkdir(parents=True)
            case "COPY":
                *sources, to = rest.split()
                _copy(sources, folder / to.lstrip("/") if to.startswith("/") else image.work / to, to.endswith("/"))
            case "RUN":
                for command in rest.split("&&"):
                    _run(command.strip(), image)
            case "ENV":
                image.variables |= dict(one.split("=", 1) for one in shlex.split(rest))
            case "USER":
                image.user = rest
            case "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            case "HEALTHCHECK":
                image.health = json.loads(rest.partition(" CMD ")[2])
            case "EXPOSE":
                assert rest.isdecimal(), rest
            case _:
                raise AssertionError(f"{dockerfile.name}: a step that is not understood: {word} {rest}")
    return image


def _steps(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", lines)
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _copy(sources: list[str], to: Path, into: bool) -> None:
    """As COPY does: a folder's content, or a file; only what the project tracks."""
    for source in sources:
        listed = subprocess.run(["git", "ls-files", "-z", source], cwd=ROOT, capture_output=True, check=True, text=True)
        files = [name for name in listed.stdout.split("\0") if name]
        assert files, f"COPY {source}: there is no such file"
        single = (ROOT / source).is_file()
        for name in files:
            target = to / Path(name).relative_to(source)
            if single:
                target = to / Path(source).name if into or to.is_dir() else to
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def _run(command: str, image: Image) -> None:
    words = shlex.split(command)
    match words:
        case ["pip", "install", *_]:
            pip = [str(image.environment / "bin" / "python"), "-m", "pip", *words[1:]]
            told = subprocess.run(pip, cwd=image.work, env=image.variables_here() | _network(), capture_output=True,
                                  text=True)  # fmt: skip
            assert told.returncode == 0, f"{command}\n{told.stdout[-2000:]}\n{told.stderr[-4000:]}"
        case ["apt-get", "install", *rest]:
            image.packages += [word for word in rest if not word.startswith("-")]
        case ["apt-get", "update"] | ["rm", "-rf", "/var/lib/apt/lists/*"] | ["useradd", "--uid", *_]:
            pass
        case _:
            raise AssertionError(f"a command that is not understood: {command}")


def _network() -> dict[str, str]:
    """How this machine reaches the package index."""
    found = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
    configured = os.environ.get("PIP_CONFIG_FILE") or next(
        (str(path) for path in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf") if path.is_file()),
        None,
    )
    return found | ({"PIP_CONFIG_FILE": configured} if configured else {})
