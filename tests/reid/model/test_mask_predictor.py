import torch
from torch.nn import functional as F

from reid.model.image_encoder import MaskPredictor

WIDTH, PATCHES, HEADS, PARTS, BATCH = 24, 10, 4, 3, 2


def slow_logits(predictor, parts, patches):
    """The formula, image by image and head by head, with the key and value projections written out."""
    depth, result = WIDTH // HEADS, []
    for own, others in zip(parts, patches, strict=True):
        queries = F.layer_norm(own, (WIDTH,), predictor.ln_queries.weight, predictor.ln_queries.bias, 1e-5)
        context = F.layer_norm(others, (WIDTH,), predictor.ln_patches.weight, predictor.ln_patches.bias, 1e-5)
        q, k, v = (
            queries @ predictor.to_q.weight.T,
            context @ predictor.to_k.weight.T,
            context @ predictor.to_v.weight.T,
        )
        heads = []
        for head in range(HEADS):
            columns = slice(head * depth, (head + 1) * depth)
            weights = torch.softmax(q[:, columns] @ k[:, columns].T * depth**-0.5, dim=-1)
            heads.append(weights @ v[:, columns])
        y = torch.cat(heads, dim=1) @ predictor.to_out.weight.T + predictor.to_out.bias + own
        y = F.layer_norm(y, (WIDTH,), predictor.ln_mlp.weight, predictor.ln_mlp.bias, 1e-5)
        hidden = y @ predictor.mlp[0].weight.T + predictor.mlp[0].bias
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))
        result.append(hidden @ predictor.mlp[2].weight.T + predictor.mlp[2].bias)
    return torch.stack(result)


def busy_predictor():
    torch.manual_seed(0)
    predictor = MaskPredictor(WIDTH, PATCHES, HEADS).double()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return predictor, torch.randn(BATCH, PARTS, WIDTH).double(), torch.randn(BATCH, PATCHES, WIDTH).double()


def test_equals_the_formula_and_its_gradient():
    predictor, parts, patches = busy_predictor()
    parts.requires_grad_()
    patches.requires_grad_()
    fast, slow = predictor(parts, patches), slow_logits(predictor, parts, patches)
    assert fast.shape == (BATCH, PARTS, PATCHES)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    wanted = [parts, patches, *predictor.parameters()]
    weights = torch.randn_like(fast)
    gradients = torch.autograd.grad((fast * weights).sum(), wanted)
    slow_gradients = torch.autograd.grad((slow * weights).sum(), wanted)
    for got, expected in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_initialisation():
    torch.manual_seed(0)
    predictor = MaskPredictor(96, 64, 2)
    for layer in (predictor.to_q, predictor.to_k, predictor.to_v, predictor.to_out, predictor.mlp[0], predictor.mlp[2]):
        assert abs(layer.weight.std().item() - 0.02) < 0.002
    assert predictor.to_q.bias is predictor.to_k.bias is predictor.to_v.bias is None
    assert predictor.to_out.bias is not None
    assert not predictor.mlp[0].bias.any() and not predictor.mlp[2].bias.any()


def test_no_tensor_as_large_as_the_patches_is_kept_for_the_backward():
    predictor, parts, patches = busy_predictor()
    patches.requires_grad_()
    given = {tensor.untyped_storage().data_ptr() for tensor in (parts, patches, *predictor.parameters())}
    kept = []

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in given:
            kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        predictor(parts, patches)
    assert kept and max(kept) < patches.untyped_storage().nbytes()
