"""`demo`: the whole way on generated pedestrians, from crops to a report, with nothing but this project.

Trains on some synthetic places and tests on one that training never saw. Everything lands in <RUNS_ROOT>/demo/.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.datasets import scan
from pipelines.evaluate import show_scores
from pipelines.label import embedded_settings, label_dataset
from pipelines.synthetic import generate_dataset
from shared.workspace import Workspace

SOURCES = ("synth_plaza", "synth_campus", "synth_mall")
TARGET = "synth_night"


@dataclass(frozen=True)
class Population:
    """Everybody is seen so often by every camera."""

    identities: int
    cameras: int
    images_per_camera: int


@dataclass(frozen=True)
class Size:
    """How much is generated, and how long is trained."""

    train: Population  # of every source
    test: Population  # of the target
    overrides: tuple[str, ...] = ()


# Many people ask, so that the intervals of the scores are narrow.
SIZES = {
    "full": Size(Population(80, cameras=4, images_per_camera=2), Population(150, cameras=4, images_per_camera=2)),
    "small": Size(
        Population(8, cameras=2, images_per_camera=2),
        Population(8, cameras=2, images_per_camera=2),
        overrides=("stage1.epochs=2", "stage2.epochs=2", "data.workers=0"),
    ),
}


def demo(
    size: Annotated[Literal["full", "small"], typer.Option(help="small: seconds, for trying the way out")] = "full",
) -> None:
    """Generate crops, label their parts, train on three places, test on a fourth, write the report."""
    from reid.config import load_config
    from reid.evaluation.evaluate import evaluate_run
    from reid.protocols.protocol import parse_protocol
    from reid.report.write import write_report
    from reid.training.train import train

    folder = Workspace.from_environment().runs_root / "demo"
    workspace = Workspace(folder / "data", folder)
    wanted = SIZES[size]
    _say(1, "generate pedestrians in four places")
    for domain in (*SOURCES, TARGET):
        _generate(workspace.data_root, domain, wanted)
    _say(2, f"ask for part boxes of {', '.join(SOURCES)} (the target is never labelled)")
    settings = embedded_settings()
    for source in SOURCES:
        label_dataset(source, workspace, settings)
    protocol = parse_protocol(f"{'+'.join(SOURCES)}2{TARGET}", workspace.data_root)
    config = load_config("pocket", wanted.overrides, protocol=protocol.name)
    _say(3, f"train on {', '.join(SOURCES)}: prompts first, then the image encoder")
    train(protocol, config, workspace, folder)
    _say(4, f"rank people in {TARGET}, which training never saw")
    scan(TARGET, workspace)
    show_scores(evaluate_run(folder, workspace))
    paths = write_report(folder, workspace)
    _say(5, f"done: open {paths.html} in a browser (also {paths.markdown.name}, {paths.json.name})")


def _generate(data_root: Path, domain: str, size: Size) -> None:
    people, tested = (size.test, True) if domain == TARGET else (size.train, False)
    generate_dataset(
        data_root,
        domain.removeprefix("synth_"),
        train_identities=0 if tested else people.identities,
        test_identities=people.identities if tested else 0,
        cameras=people.cameras,
        images_per_camera=people.images_per_camera,
        seed=0,
    )


def _say(step: int, what: str) -> None:
    typer.echo(f"[{step}/5] {what}")
