import torch

from reid.config import Stage2Config
from reid.model.muva import build_model
from reid.training.optimizer import WeightAverage, freeze_for_stage2


def test_the_average_is_the_recursion_over_trained_weights_and_statistics(model_config):
    model = build_model(model_config(), 3, seed=0)
    freeze_for_stage2(model, Stage2Config())
    averaged = WeightAverage(model, 0.75)
    followed = ["classifier.weight", "image_encoder.part_tokens", "bnneck.running_mean"]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected = {name: start[name].clone() for name in followed}
    for step in range(4):
        for name, tensor in model.state_dict().items():
            if name in followed:
                tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step))
                expected[name] = 0.75 * expected[name] + 0.25 * tensor
        averaged.update(model)
    found = averaged.module.state_dict()
    for name in followed:
        torch.testing.assert_close(found[name], expected[name])
    for name in found.keys() - set(followed):  # what does not change has itself as its average
        assert torch.equal(found[name], start[name]), name
