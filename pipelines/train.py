"""`train`: both stages of one protocol, resumed when the run folder already exists."""

from typing import Annotated

import typer

from pipelines.datasets import scan
from pipelines.runs import name_of, run_folder
from pipelines.terminal import say
from shared.datasets import locate
from shared.errors import DataError
from shared.labels import choose_label_run
from shared.workspace import Workspace


def train(
    protocol: Annotated[str, typer.Argument(help="<source>[+<source>...]2<target>[+<target>...], e.g. duke2market")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ..., see reid/config.py")] = None,
    preset: Annotated[str, typer.Option(help="tiny, pocket, paper, or a path to a .yaml file")] = "paper",
    label_run: Annotated[str | None, typer.Option(help="which part labels; default: the only run there is")] = None,
    run: Annotated[
        str | None, typer.Option(help="name of the run folder; default: from protocol, preset, seed")
    ] = None,
) -> None:
    """Train on the sources of a protocol: prompts first, then the image encoder."""
    from reid.config import load_config
    from reid.protocols.protocol import parse_protocol

    workspace = Workspace.from_environment()
    given = list(overrides or [])
    if label_run:
        given.append(f"data.label_run={label_run}")
    config = load_config(preset, given, protocol=protocol.strip().lower())
    parsed = parse_protocol(
        config.protocol,
        workspace.data_root,
        pretrained_on=config.model.pretrained_on,
        allow_pretrained_targets=config.allow_pretrained_targets,
    )
    folder = run_folder(workspace, run or f"{parsed.name}-{config.preset}-seed{config.seed}", must_exist=False)
    for source in parsed.sources:
        locate(source, workspace.data_root)
    if config.model.parts and (config.data.label_run or config.data.missing_labels != "prior"):
        choose_label_run(config.data.label_run, parsed.sources, workspace.labels)

    from reid.inference.devices import joined, told_when_another_stops  # torch: after the arguments are checked
    from reid.training.train import train as train_both_stages

    fabric = joined(config)
    with told_when_another_stops():
        if fabric.is_global_zero:  # of several processes one scans and tells, the others wait
            for source in parsed.sources:
                scan(source, workspace)
            for target in parsed.targets:
                try:
                    scan(target, workspace)
                except DataError as err:  # e.g. not on this machine
                    say(f"target {target}: {err}", err=True)
        fabric.barrier()
        train_both_stages(parsed, config, workspace, folder, fabric)
    if fabric.is_global_zero:
        say(f"trained: {folder}\nnext: dgreid eval --run {name_of(workspace, folder)}")
