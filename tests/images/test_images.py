"""Every image's own steps, then what the compose file and the Kubernetes manifests start of it.

`make test-images`: it installs each image's packages anew, several GB and minutes. The vLLM image is its makers';
in its place stands the environment of `make test-vllm`, whose tests start the same entry point with a model.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pipelines.synthetic import generate_dataset
from tests.images.dockerfile import ROOT, Image, built

SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


def image_of(name: str, tmp_path_factory: pytest.TempPathFactory, python: Path | None = None) -> Image:
    image = built(ROOT / "docker" / f"{name}.Dockerfile", tmp_path_factory.mktemp(name), python)
    assert image.user == "10001", "not root"
    if image.packages and shutil.which("apt-cache"):
        known = subprocess.run(["apt-cache", "show", *image.packages], capture_output=True, text=True, check=False)
        assert set(image.packages) <= set(re.findall(r"^Package: (\S+)", known.stdout, re.MULTILINE)), known.stderr
    return image


@contextmanager
def running(command: list[str], cwd: Path, variables: dict[str, str], log: Path) -> Iterator[str]:
    """The URL that a server says it listens on; SIGTERM at the end must end it with 0."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=cwd, env=variables, stdout=file, stderr=file)
    try:
        while not (found := re.search(r"running on (http://[\w.]+:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found[1].replace("0.0.0.0", "127.0.0.1")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode in (0, -signal.SIGTERM), log.read_text()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model server that answers at once."""
    command = [sys.executable, str(ROOT / "tests/benchmarks/instant_upstream.py")]
    with running(command, ROOT, {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path_factory.mktemp("up") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def service(upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The labeler's image, started as the compose file starts it, and healthy as the image asks."""
    image = image_of("labeler", tmp_path_factory)
    given = SERVICES["labeler"]["environment"] | {"LABELER_UPSTREAM_URL": upstream, "LABELER_MODEL": MODEL}
    given |= {"LABELER_API_KEY": "", "LABELER_PORT": "0"}
    variables = image.variables_here(**given)
    with running(image.command(), image.work, variables, image.folder / "log") as url:
        healthy_in = (image.health, SERVICES["labeler"]["healthcheck"]["test"][1:])
        for program, *words in healthy_in:
            check = [image._program(program), *(word.replace("http://127.0.0.1:8300", url) for word in words)]
            assert url in check[-1]
            subprocess.run(check, check=True, env=variables, timeout=60)
        yield url


def people(image: Image) -> None:
    generate_dataset(
        image.folder / "data", "plaza", train_identities=4, test_identities=0, cameras=2, images_per_camera=2, seed=0,
        name="walkers",
    )  # fmt: skip


def ended(command: list[str], image: Image, **variables: str) -> str:
    """What a command printed. It must end with 0."""
    done = subprocess.run(
        command, cwd=image.work, env=image.variables_here(**variables), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_labeler_answers_its_health_check(service: str) -> None:
    assert service.startswith("http://127.0.0.1:")


def test_the_trainer_labels_through_the_labeler_and_knows_how_to_train(
    service: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = image_of("trainer", tmp_path_factory)
    people(image)
    given = {"DGREID_LABELER_URL": service, "DGREID_METRICS": "127.0.0.1:0", "DGREID_WEBHOOK_URL": ""}
    assert "16" in ended(image.command("label", "walkers", "--strict"), image, **given)
    assert list((image.folder / "runs" / "labels").rglob("*.parquet"))
    assert "--preset" in ended(image.command("train", "--help"), image, COLUMNS="200")


def test_a_ray_node_labels_on_a_cluster(tmp_path_factory: pytest.TempPathFactory) -> None:
    image = image_of("ray", tmp_path_factory)
    people(image)
    ray = str(image.environment / "bin" / "ray")
    assert "ray, version" in ended([ray, "--version"], image)
    _, job = yaml.safe_load_all((ROOT / "docker" / "kubernetes" / "ray.yaml").read_text())
    program, command, _, *rest = job["spec"]["entrypoint"].split()
    assert (program, command, rest) == ("dgreid", "label", ["--cluster", "auto"])
    dgreid = str(image.environment / "bin" / program)
    words = [dgreid, command, "walkers", "--engine", "body_prior", "--cluster", "local"]
    assert "16" in ended(words, image, TMPDIR="/tmp")
    assert list((image.folder / "runs" / "labels").rglob("*.parquet"))


def test_the_vllm_image_starts_vllm(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = ROOT / ".venv-vllm"
    if not (environment / ".installed").exists():
        pytest.skip("vLLM's environment is absent: make test-vllm builds it")
    image = image_of("vllm", tmp_path_factory, environment)
    assert image.base.startswith("vllm/vllm-openai:v")
    assert image.health == SERVICES["vllm"]["healthcheck"]["test"][1:]
    assert "--max-model-len" in ended(image.command(MODEL, "--help=all"), image)
