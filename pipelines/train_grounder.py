"""`train-grounder`: makes the pocket grounder from generated people and photos with known part boxes."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.terminal import say
from shared.workspace import Workspace

UNSEEN = 200  # generated people to score on


def train_grounder(
    truth: Annotated[Path, typer.Option(help="folder with images/ and parts.csv")] = Path(
        "../shared/datasets/part_truth"
    ),
    minutes: Annotated[float, typer.Option(help="how long to train; also decides how the learning rate falls")] = 150.0,
    steps: Annotated[int | None, typer.Option(help="a budget in steps instead")] = None,
    generated: Annotated[int, typer.Option(help="people to draw")] = 20_000,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
    run: Annotated[str, typer.Option(help="name of the run folder")] = "default",
    export_to: Annotated[
        Path | None, typer.Option("--export", help="folder for the checkpoint with its scores and model card")
    ] = None,
) -> None:
    """Train the pocket grounder; killed, the same command continues. With --minutes 0, only export."""
    import torch

    from pipelines.recipes.grounder.card import export
    from pipelines.recipes.grounder.scenes import UNSEEN_IDENTITY, generated_scenes, real_scenes
    from pipelines.recipes.grounder.training import Recipe, Trainer

    torch.set_num_threads(threads)
    root = Workspace.from_environment().runs_root / "train-grounder"
    real = real_scenes(truth)
    drawn = generated_scenes(root / "generated", generated)
    trainer = Trainer(root / run, Recipe(minutes=minutes, steps=steps), real, drawn, device=torch.device(device))
    trainer.run()
    say(f"trained: {trainer.checkpoint}")
    if export_to:
        unseen = generated_scenes(root / "generated", UNSEEN, first_identity=UNSEEN_IDENTITY)
        told = {**trainer.record, "generated": generated, "command": "dgreid train-grounder"}
        export(trainer.checkpoint, export_to, real, unseen, told)
        say(f"exported: {export_to}")
