import torch

from reid.config import Stage2Config
from reid.model.muva import build_model
from reid.training.optimizer import freeze_for_stage2
from reid.training.weight_average import WeightAverage


def test_the_average_is_the_recursion_over_trained_weights_and_statistics(model_config):
    model = build_model(model_config(), 3, seed=0)
    freeze_for_stage2(model, Stage2Config())
    average = WeightAverage(model, 0.75)
    followed = ["classifier.weight", "image_encoder.part_tokens", "bnneck.running_mean"]
    expected = {name: model.state_dict()[name].clone() for name in followed}
    for step in range(4):
        for name, tensor in model.state_dict().items():
            if name in followed:
                tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step))
                expected[name] = 0.75 * expected[name] + 0.25 * tensor
        average.update(model)
    for name in followed:
        torch.testing.assert_close(average.values[name], expected[name])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(average.values) == trained | {"bnneck.running_mean", "bnneck.running_var"}


def test_applied_weights_are_put_back(model_config):
    model = build_model(model_config(), 3, seed=0)
    freeze_for_stage2(model, Stage2Config())
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.classifier.weight += 1
    own = model.classifier.weight.detach().clone()
    with average.applied(model):
        torch.testing.assert_close(model.classifier.weight.detach(), own - 1)
    assert torch.equal(model.classifier.weight, own)
    average.update(model)
    other = WeightAverage(model, 0.5)
    other.load(average.values)
    assert torch.equal(other.values["classifier.weight"], average.values["classifier.weight"])
    torch.testing.assert_close(average.values["classifier.weight"], own - 0.5)
