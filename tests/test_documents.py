"""What README, Makefile and the compose file promise exists."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
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


SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


def test_the_compose_file_sets_only_variables_that_are_read() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(SERVICES["labeler"]["environment"]) <= known
    for name in ("label", "train", "trainer"):
        read = known | {"DGREID_LABELER_URL", "DGREID_METRICS", "DGREID_WEBHOOK_URL"}
        assert set(SERVICES[name]["environment"]) <= read
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name}: published on the loopback interface only"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_pinned_limited_and_waits_for_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    needs = service.get("depends_on", {})
    for needed, how in needs.items():
        if how["condition"] == "service_healthy":
            assert SERVICES[needed]["healthcheck"]["test"][0] == "CMD"
        else:
            assert how["condition"] == "service_completed_successfully" and SERVICES[needed]["restart"] == "no"
    if "build" not in service:
        assert re.fullmatch(r"[\w/.-]+:v?\d+\.\d+\.\d+", service["image"])
        return
    lines = (ROOT / service["build"]["dockerfile"]).read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM [\w/.-]+:v?\d+\.\d+\.\d+[\w-]*", base), "an exact version"
    assert "USER 10001" in lines
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / word).exists() for word in line.split()[1:-1]), line
    if "healthcheck" in service:
        assert f"CMD {json.dumps(service['healthcheck']['test'][1:])}" in (" ".join(line.split()) for line in lines)


def test_the_kubernetes_manifests_fit_together() -> None:
    documents = list(yaml.safe_load_all((ROOT / "docker" / "kubernetes" / "labelling.yaml").read_text()))
    by_kind: dict[str, dict] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {"DGREID_LABELER_URL", "DGREID_METRICS", "DGREID_WEBHOOK_URL", "HF_HUB_OFFLINE", "MODEL", "DATASET"}
    pods = [one["spec"]["template"] for kind in ("Deployment", "Job") for one in by_kind[kind].values()]
    assert len(pods) == 3
    for pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and not pod["spec"]["automountServiceAccountToken"]
        (container,) = pod["spec"]["containers"]
        assert {one["name"] for one in container["env"]} <= known
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["spec"]["volumes"]}
        for one in container["env"]:
            if url := re.fullmatch(r"http://(\w+):(\d+)", one.get("value", "")):
                (port,) = by_kind["Service"][url[1]]["spec"]["ports"]
                assert port["port"] == int(url[2])
    for name, service in by_kind["Service"].items():
        labels = by_kind["Deployment"][name]["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_the_ray_job_fits_its_image_and_its_command() -> None:
    settings, job = yaml.safe_load_all((ROOT / "docker" / "kubernetes" / "ray.yaml").read_text())
    assert settings["data"].keys() <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert job["kind"] == "RayJob" and job["spec"]["entrypoint"].split()[:2] == ["dgreid", "label"]
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["image"].startswith("dgreid-ray:")
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert ("/data", True) in {(mount["mountPath"], mount.get("readOnly")) for mount in container["volumeMounts"]}
    (worker,) = pods[1]["containers"]
    assert not pods[1]["automountServiceAccountToken"]
    for name, resource in (("CPUS", "cpu"), ("GPUS", "nvidia.com/gpu")):
        assert int(settings["data"][f"LABELER_RAY_{name}"]) <= int(worker["resources"]["limits"][resource])
    lines = (ROOT / "docker" / "ray.Dockerfile").read_text().splitlines()
    assert "USER 10001" in lines
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / word).exists() for word in line.split()[1:-1]), line


def test_the_addresses_that_prometheus_reads_are_services() -> None:
    config = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())
    targets = [one for job in config["scrape_configs"] for static in job["static_configs"] for one in static["targets"]]
    assert {target.split(":")[0] for target in targets} <= set(SERVICES)
