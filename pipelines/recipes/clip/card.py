"""The model card of the pocket CLIP, written from its scores."""

from typing import Any

_TEXT = """# Pocket CLIP

A CLIP of {parameters:.1f} million parameters ({megabytes:.1f} MB in half precision) that was trained on people and
their clothes only. It lets this project train and be tried without a GPU and without a download.
For research and demonstration; not for surveillance, and not for naming anybody.

- **Architecture**: open_clip; vision transformer with {layers} layers of width {width}, patches of 16 pixels, input
  128 x 64 (height x width, mean and deviation 0.5); text transformer with CLIP's byte-pair vocabulary. All of it stands
  in `open_clip_config.json`.
- **Use**: `open_clip.create_model("local-dir:reid/pocket")`, or `make train PRESET=pocket`.
- **Data**: {data}
- **Captions**: sentences made from PETA's attribute words in many wordings, two facts or more each. No caption of a
  batch is true of another picture of it.
- **Made by**: `python -m pipelines train-clip{arguments}`; open_clip's loss, {batches} batches of {batch}, seed {seed},
  torch {torch}. SHA-256 of the weights: `{sha256}`.

## Scores

All of people that were not trained on: one identity in five is held out by a hash of its name. Beside each score, in
brackets, stands what chance gives. Percent.

{tables}

*Retrieval*: a person is described by everything that is known of it and all pictures are ranked; a picture is right
when the whole description is true of its person. *Colour*: the nearest of 11 colour words, for people whose garment has
exactly one; every person counts the same. In brackets: an even guess; "commonest" is what always naming the commonest
colour gives.

## Limits

- It has seen {seen}. It knows
  colours, kinds of garment, hair, shoes and bags as far as PETA's words go, and nothing else of the world.
- Rare colours (orange, pink, yellow) are rare in the real pictures too; `scores.json` has each colour by itself.
- PETA's words were given by eye; gender and age are what annotators took people for.
- The scores on real people come from few identities of the same places as the training: other cameras are harder.
"""


def card(scores: dict[str, Any], size_bytes: int, architecture: dict[str, Any]) -> str:
    """The text of README.md.

    scores: as in scores.json. size_bytes: of the weights.
    """
    training = scores["training"]
    real = ", ".join(training["sources"])
    drawn = f"{3 * training['identities']:,} generated people of three places ({training['views']} pictures each)"
    return _TEXT.format(
        parameters=size_bytes / 2e6,
        megabytes=size_bytes / 1e6,
        layers=architecture["vision_cfg"]["layers"],
        width=architecture["vision_cfg"]["width"],
        data=f"{drawn}"
        + (f", and the training identities of {real} with PETA's attribute words" if real else "")
        + ", less those held out. No picture of any other data set.",
        arguments="" if real else " --sources none",
        batches=f"{training['rounds'] * training['steps']:,}",
        batch=training["batch"],
        seed=training["seed"],
        torch=training["torch"],
        sha256=scores["weights_sha256"],
        seen="a few hundred real people in three places, and drawn ones" if real else "drawn people only",
        tables=_tables(scores["held_out"]),
    )


def _tables(held_out: dict[str, Any]) -> str:
    lines = [
        "| people | pictures | recall at 1 | at 5 | at 10 | mAP |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in held_out.items():
        cells = [
            f"{found['retrieval'][key]:.1f} ({found['retrieval'][key + '_by_chance']:.1f})"
            for key in ("recall_1", "recall_5", "recall_10", "mean_ap")
        ]
        lines.append(f"| {name}: {found['people']} | {found['pictures']:,} | {' | '.join(cells)} |")
    lines += [
        "",
        "| colour of | people | right | mean over colours | commonest |",
        "|---|---|---|---|---|",
    ]
    for name, found in held_out.items():
        for garment in ("upper", "lower"):
            colour = found[f"{garment}_colour"]
            chance = f"({colour['by_chance']:.1f})"
            lines.append(
                f"| {garment} garment, {name} | {colour['people']} | {colour['accuracy']:.1f} {chance} | "
                f"{colour['balanced_accuracy']:.1f} {chance} | {colour['always_the_commonest']:.1f} |"
            )
    return "\n".join(lines)
