"""`eval`: score a trained run on the targets of its protocol."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipelines.datasets import scan
from pipelines.runs import name_of, newest_run, run_folder
from pipelines.terminal import say
from shared.workspace import Workspace

COLUMNS = {"mean_ap": "mAP", "mean_inp": "mINP", "rank_1": "Rank-1", "rank_5": "Rank-5", "rank_10": "Rank-10"}


def evaluate(
    run: Annotated[str | None, typer.Option(help="name or path of the run; default: the newest")] = None,
    re_ranking: Annotated[
        bool | None, typer.Option(help="k-reciprocal re-ranking; default: the run's evaluation.re_ranking")
    ] = None,
) -> None:
    """Embed the targets with the trained and the untrained model and compare their rankings."""
    from reid.config import read_config
    from reid.protocols.protocol import parse_protocol

    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)

    from reid.evaluation.evaluate import evaluate_run  # imports torch: after the arguments are checked

    for target in parse_protocol(read_config(folder).protocol, workspace.data_root).targets:
        scan(target, workspace)
    show_scores(evaluate_run(folder, workspace, re_ranking=re_ranking))
    say(f"next: make report RUN={name_of(workspace, folder)}")


def show_scores(found: dict[str, Any]) -> None:
    """The protocol line, then one row for the untrained and the trained model of every target, in percent."""
    typer.echo(found["protocol"])
    table = Table("target", "model", *COLUMNS.values())
    for target, models in found["scores"].items():
        for model in ("untrained", "trained"):
            table.add_row(target, model, *(f"{models[model][name]:.1f}" for name in COLUMNS))
    Console().print(table)
