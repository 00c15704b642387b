"""`train-grounder`: train the pocket grounder on generated people and on photos with known part boxes."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.terminal import say
from shared.workspace import Workspace

UNSEEN = 200  # generated people for the scores


def train_grounder(
    truth: Annotated[Path, typer.Option(help="folder with images/ and parts.csv")] = Path(
        "../shared/datasets/part_truth"
    ),
    minutes: Annotated[float, typer.Option(help="training time; the learning rate schedule follows it")] = 150.0,
    steps: Annotated[int | None, typer.Option(help="budget in steps, instead of minutes")] = None,
    generated: Annotated[int, typer.Option(help="number of generated people")] = 20_000,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
    run: Annotated[str, typer.Option(help="name of the run folder")] = "default",
    export_to: Annotated[
        Path | None, typer.Option("--export", help="write checkpoint, scores and model card into this folder")
    ] = None,
) -> None:
    """Train the pocket grounder. Interrupted, the same command resumes; --minutes 0 ends with the current weights."""
    import torch

    from pipelines.recipes.grounder.release import write_release
    from pipelines.recipes.grounder.scenes import UNSEEN_IDENTITY, generated_scenes, real_scenes
    from pipelines.recipes.grounder.training import GrounderTraining, Trainer

    torch.set_num_threads(threads)
    root = Workspace.from_environment().on_disk / "train-grounder"
    real = real_scenes(truth)
    people = generated_scenes(root / "generated", generated)
    config = GrounderTraining(minutes=minutes, steps=steps)
    trainer = Trainer(root / run, config, real, people, device=torch.device(device))
    trainer.run()
    say(f"trained: {trainer.checkpoint}")
    if export_to:
        unseen = generated_scenes(root / "generated", UNSEEN, first_identity=UNSEEN_IDENTITY)
        record = {**trainer.record, "generated": generated, "command": "dgreid train-grounder"}
        write_release(trainer.checkpoint, export_to, real, unseen, record)
        say(f"exported: {export_to}")
