"""`train-clip`: train the pocket CLIP on captioned people, score it on held-out people, write the release folder."""

from typing import Annotated

import typer

from pipelines.datasets import scan, split_names
from pipelines.terminal import say
from shared.workspace import Workspace


def train_clip(
    sources: Annotated[
        str,
        typer.Option(
            help="data sets whose training identities are trained on, joined by +; none: generated people only"
        ),
    ] = "3dpes+caviar+towncentre",
    preset: Annotated[str, typer.Option(help="preset whose model.architecture is trained")] = "pocket",
    rounds: Annotated[
        int | None, typer.Option(help="number of rounds of 100 batches; default: as for the shipped model")
    ] = None,
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
) -> None:
    """Train the pocket CLIP and write the files of reid/pocket. Interrupted, the same command resumes."""
    from pipelines.recipes.clip.release import write_release
    from pipelines.recipes.clip.training import clip_training
    from pipelines.recipes.clip.training import train_clip as train
    from reid.config import load_config

    workspace = Workspace.from_environment()
    names = () if sources == "none" else tuple(split_names(sources, workspace))
    for name in names:
        scan(name, workspace)
    config = clip_training(sources=names, seed=seed, device=device, **({"rounds": rounds} if rounds else {}))
    folder = workspace.on_disk / "pocket-clip"
    model = load_config(preset).model
    scores = write_release(train(config, model, workspace, folder), config, model, workspace, folder)
    say(
        f"written: {folder / 'release'} (scores in README.md)\n"
        f"to ship it: copy the folder to reid/pocket and set model.weights_sha256={scores['weights_sha256']} and "
        f"model.pretrained_on={scores['pretrained_on']} in reid/presets/{preset}.yaml"
    )
