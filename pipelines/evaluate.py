"""`eval`: score a trained run on the targets of its protocol, or on any other data set."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.datasets import scan
from pipelines.runs import name_of, newest_run, run_folder
from pipelines.terminal import print_table, say
from shared.datasets import resolve_name
from shared.errors import DgreidError
from shared.workspace import Workspace

if TYPE_CHECKING:
    from reid.evaluation.results import RunResults

COLUMNS = {"mean_ap": "mAP", "mean_inp": "mINP", "rank_1": "Rank-1", "rank_5": "Rank-5", "rank_10": "Rank-10"}


def evaluate(
    run: Annotated[str | None, typer.Option(help="name or path of the run; default: the newest")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="data set to score on, repeatable; default: the targets of the protocol")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps; default: the run's device")] = None,
    re_ranking: Annotated[
        bool | None, typer.Option(help="k-reciprocal re-ranking; default: the run's evaluation.re_ranking")
    ] = None,
    untrained: Annotated[bool, typer.Option(help="score the same model before training, too")] = True,
    allow_source: Annotated[
        bool, typer.Option("--allow-source", help="score data sets that were trained on, marked as supervised")
    ] = False,
) -> None:
    """Score a trained run: embed its targets with the trained and the untrained model and rank them."""
    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)
    chosen = [resolve_name(name, workspace.data_root) for name in target or []]

    from reid.config import read_config
    from reid.evaluation.evaluate import evaluate_run, run_protocol  # imports torch
    from reid.inference.devices import make_fabric
    from reid.training.trackers import tell_trackers

    names = list(dict.fromkeys(chosen or run_protocol(read_config(folder), workspace).targets))
    fabric = make_fabric(device or read_config(folder).device, "32-true")
    fabric.launch()
    problems: dict[str, DgreidError] = {}
    if fabric.is_global_zero:  # of several processes one scans, scores and tells, the others share the embedding
        for name in names:
            try:
                scan(name, workspace)
            except DgreidError as err:
                problems[name] = err
                if fabric.world_size > 1:
                    raise
    fabric.barrier()
    scanned = [name for name in names if name not in problems]
    if not scanned:
        raise next(iter(problems.values()))
    found = evaluate_run(
        folder,
        workspace,
        targets=scanned,
        device=device,
        re_ranking=re_ranking,
        untrained=untrained,
        allow_source=allow_source,
        unusable=problems,
        fabric=fabric,
    )
    if not fabric.is_global_zero:
        return
    show_scores(found)
    tell_trackers(folder, read_config(folder), summary=found.flat_scores())
    workspace.store_run(folder)
    if found.failed:
        told = "; ".join(f"{name}: {reason}" for name, reason in found.failed.items())
        raise DgreidError(
            f"{len(found.failed)} of {len(names)} targets could not be scored ({told})",
            fix=f"see what each of them lacks; the other scores are in {folder / 'scores.json'}",
        )
    say(f"next: dgreid report --run {name_of(workspace, folder)}")


def show_scores(found: "RunResults") -> None:
    """The protocol line, one row per target and state of the model, in percent, and what a reader must know."""
    say(found.protocol)
    rows = [
        (found.label(target), state, *(f"{states[state][name]:.1f}" for name in COLUMNS))
        for target, states in found.scores.items()
        for state in ("untrained", "trained")
        if state in states
    ]
    print_table(("target", "model", *COLUMNS.values()), rows)
    for sentence in found.notes():
        say(sentence)
