"""`calibrate`: what a run's similarities are worth, from people of its sources that it was not trained on."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.datasets import scan
from pipelines.embed import DeviceName, RunName, load_encoder
from pipelines.runs import newest_run, run_folder
from pipelines.terminal import print_table, say
from shared.datasets import locate, resolve_name
from shared.errors import DataError
from shared.workspace import Workspace

if TYPE_CHECKING:
    from reid.evaluation.calibration import Pairs
    from reid.inference.encoder import PersonEncoder
    from shared.schemas import ManifestRow

MAX_IMAGES = 3000  # of a data set: all pairs of them are compared


def calibrate(
    run: RunName = None,
    data: Annotated[
        list[str] | None, typer.Option(help="calibrate on this data set's people instead of held-out ones; repeatable")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="say how well it holds on this data set; repeatable")] = None,
    method: Annotated[Literal["isotonic", "logistic"], typer.Option(help="form of the curve")] = "isotonic",
    device: DeviceName = "auto",
) -> None:
    """Fit and store the probability that two images show one person, and thresholds for false accept rates."""
    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)
    fitted_names = [resolve_name(name, workspace.data_root) for name in data or []]
    tested = [resolve_name(name, workspace.data_root) for name in test or []]

    from reid.config import read_config
    from reid.evaluation.calibration import fit, joined, measure, write_calibration
    from reid.evaluation.evaluate import run_protocol
    from reid.evaluation.held_out import held_out_people, unseen_people
    from reid.training.run_folder import read_image_ids

    config = read_config(folder)
    protocol = run_protocol(config, workspace)
    sources = fitted_names or list(protocol.sources)
    rows_of = {name: list(scan(name, workspace)) for name in [*sources, *tested]}
    if fitted_names:
        trained_on = read_image_ids(folder) or frozenset()
        chosen = {name: unseen_people(rows_of[name], trained_on) for name in sources}
    else:
        chosen = held_out_people(folder, config, protocol, workspace)
    if not any(chosen.values()):
        raise DataError(
            f"every person of {', '.join(sources)} was trained on: no identity is left to calibrate on",
            path=folder,
            fix="train with data.validation_share=0.2, or name another data set with --data",
        )
    encoder = load_encoder(workspace, str(folder), device)
    pairs, images = [], 0
    for name in sources:
        if rows := _sample(chosen[name]):
            pairs.append(_pairs(rows, name, encoder, workspace))
            images += len(rows)
    found = fit(
        joined(pairs),
        method,
        model_hash=encoder.model_hash,
        images=images,
        fitted_on=[name for name in sources if chosen[name]],
    )
    path = write_calibration(found, folder)
    say(
        f"fitted on {found.people} people ({found.images} images, {found.same_pairs:,} pairs of one person, "
        f"{found.different_pairs:,} of two) of {', '.join(found.fitted_on)}; "
        f"left out in turn: ECE {found.ece:.3f}, Brier score {found.brier:.3f}"
    )
    known = [
        (name, "too few pairs to tell" if value is None else f"{value:.4f}") for name, value in found.thresholds.items()
    ]
    print_table(("false accept rate", "least similarity"), known)
    lines = []
    for name in tested:
        worth = measure(found, _pairs(_sample(_people(rows_of[name])), name, encoder, workspace))
        for rate, told in worth["rates"].items():
            shares = (
                ("", "") if told is None else (f"{told['false_accepts']:.1e}", f"{100 * told['true_accepts']:.1f} %")
            )
            lines.append((name, f"{worth['ece']:.3f}", f"{worth['brier']:.3f}", rate, *shares))
    if lines:
        columns = ("data set", "ECE", "Brier", "false accepts wanted", "false accepts found", "same person accepted")
        print_table(columns, lines, title="on people of other places")
    say(f"calibration: {path}")


def _people(rows: "list[ManifestRow]") -> "list[ManifestRow]":
    return [row for row in rows if row.identity is not None and row.status == "ok"]


def _sample(rows: "list[ManifestRow]") -> "list[ManifestRow]":
    """Whole people, evenly spread, up to MAX_IMAGES."""
    rows = list({row.path: row for row in rows}.values())
    people = sorted({row.person for row in rows})
    step = max(1, -(-len(rows) // MAX_IMAGES))
    kept = set(people[::step])
    return [row for row in rows if row.person in kept]


def _pairs(rows: "list[ManifestRow]", name: str, encoder: "PersonEncoder", workspace: Workspace) -> "Pairs":
    from reid.evaluation.calibration import pairs_of
    from reid.inference.similarity import Comparison, Side, similarities

    root = locate(name, workspace.data_root)
    found = encoder.embed([root / row.path for row in rows])
    side = Side.of(found.features, found.visibility, Comparison(encoder.parts))
    return pairs_of(similarities(side, side), [row.person for row in rows], [row.camera for row in rows])
