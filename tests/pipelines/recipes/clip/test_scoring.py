import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.recipes.clip.people import People
from pipelines.recipes.clip.scoring import limit_images, retrieval_scores, score_people


def test_retrieval_by_hand() -> None:
    similarity = np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.9, 0.5, 0.2]])
    right = np.array([[True, False, True, False], [False, False, True, False]])
    found = retrieval_scores(
        np.pad(similarity, ((0, 0), (0, 8)), constant_values=-1.0), np.pad(right, ((0, 0), (0, 8)))
    )
    assert found["mean_ap"] == pytest.approx(100 * np.mean([(1 + 2 / 3) / 2, 1 / 2]))
    assert found["recall_1"] == 50 and found["recall_5"] == 100


def test_chance_is_what_random_orders_give() -> None:
    rng = np.random.default_rng(0)
    right = np.zeros((2, 40), bool)
    right[0, :3], right[1, :7] = True, True
    orders = [retrieval_scores(rng.random((2, 40)), right) for _ in range(3000)]
    for name in ("mean_ap", "recall_1", "recall_5", "recall_10"):
        assert np.mean([found[name] for found in orders]) == pytest.approx(orders[0][f"{name}_by_chance"], abs=1.0)


class _KnowsColours:
    """A fake CLIP that encodes the colour of the upper garment and nothing else."""

    context_length = 64
    words = ("red", "blue", "green", "white")

    def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
        colours = torch.tensor([[200, 20, 20], [20, 20, 200], [20, 160, 20], [240, 240, 240]]) / 127.5 - 1
        return F.normalize(torch.exp(-10 * torch.cdist(images.mean(dim=(2, 3)), colours)), dim=1)

    def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
        from open_clip.tokenizer import SimpleTokenizer

        said = [SimpleTokenizer().decode(row.tolist()).split() for row in tokens]
        return torch.tensor([[float(word in line) for word in self.words] for line in said])


def test_a_model_that_knows_colours_names_the_upper_garment_and_guesses_the_lower_one(painted_people: People) -> None:
    found = score_people(_KnowsColours(), painted_people)
    assert (found["people"], found["pictures"]) == (12, 24)
    upper, lower = found["upper_colour"], found["lower_colour"]
    assert upper["accuracy"] == upper["balanced_accuracy"] == 100 and upper["colours"] == 4
    assert upper["always_the_commonest"] == 25 and upper["by_chance"] == pytest.approx(100 / 11)
    assert lower["accuracy"] < 50
    assert found["retrieval"]["recall_1"] > found["retrieval"]["recall_1_by_chance"]


def test_images_of_a_tracklet_are_sampled_over_its_whole_length() -> None:
    people = People(np.arange(103)[:, None, None, None], np.array([0] * 100 + [1] * 3), ("a/1", "a/2"), ((), ()))
    few = limit_images(people)
    first = few.pixels[few.owners == 0].ravel()
    assert len(first) == 8 and first[0] == 0 and first[-1] == 99 and np.diff(first).min() > 10
    assert few.pixels[few.owners == 1].ravel().tolist() == [100, 101, 102]
