import pytest
import torch
from torch.nn import functional as F

from reid.training.losses import IdentityMemory, update_with_hardest

LABELS = torch.tensor([4, 1, 4, 4, 0, 1, 6])  # uneven counts, identities that are absent


@pytest.fixture
def scene():
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(8, 5), dim=1)
    return rows, F.normalize(torch.randn(len(LABELS), 5), dim=1)


def slow_update(rows, features, labels, momentum):
    updated = rows.clone()
    for identity in set(labels.tolist()):
        own = [feature for feature, label in zip(features, labels.tolist(), strict=True) if label == identity]
        hardest = min(own, key=lambda feature: float(feature @ rows[identity]))
        moved = momentum * rows[identity] + (1 - momentum) * hardest
        updated[identity] = moved / moved.norm()
    return updated


def test_loss_and_gradient_equal_a_plain_softmax_over_the_old_rows(scene):
    rows, features = scene
    memory = IdentityMemory(rows, temperature=0.01, momentum=0.2)
    ours, plain = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = memory(ours, LABELS)
    logits = plain @ rows.T / 0.01
    expected = -sum(F.log_softmax(row, dim=0)[label] for row, label in zip(logits, LABELS, strict=True)) / len(LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_backward_moves_the_rows_to_the_hardest_sample_and_forward_does_not(scene):
    rows, features = scene
    memory = IdentityMemory(rows, temperature=0.01, momentum=0.2)
    loss = memory(features.clone().requires_grad_(), LABELS)
    assert torch.equal(memory.rows, rows)
    loss.backward()
    torch.testing.assert_close(memory.rows, slow_update(rows, features, LABELS, 0.2))
    absent = [2, 3, 5, 7]
    assert torch.equal(memory.rows[absent], rows[absent])
    assert not torch.equal(memory.rows[[0, 1, 4, 6]], rows[[0, 1, 4, 6]])


def test_many_random_updates_equal_the_loop():
    generator = torch.Generator().manual_seed(3)
    for _ in range(30):
        rows = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
        features = F.normalize(torch.randn(12, 4, generator=generator), dim=1)
        labels = torch.randint(0, 6, (12,), generator=generator)
        momentum = torch.rand((), generator=generator).item()
        expected = slow_update(rows, features, labels, momentum)
        update_with_hardest(rows, features, labels, momentum)
        torch.testing.assert_close(rows, expected)


def test_a_scaled_loss_updates_the_same_and_the_memory_is_float32(scene):
    rows, features = scene
    memory = IdentityMemory(rows.double(), temperature=0.01, momentum=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = memory(features.clone().requires_grad_(), LABELS)
    assert loss.dtype == memory.rows.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(features @ rows.T / 0.01, LABELS))
    (loss * 1024).backward()
    torch.testing.assert_close(memory.rows, slow_update(rows, features, LABELS, 0.2))


def test_evaluation_changes_nothing_and_the_state_can_be_saved(scene):
    rows, features = scene
    memory = IdentityMemory(rows, temperature=0.01, momentum=0.2)
    with torch.no_grad():
        memory(features, LABELS)
    assert torch.equal(memory.rows, rows) and memory.rows.data_ptr() != rows.data_ptr()
    other = IdentityMemory(torch.zeros(8, 5), temperature=0.01, momentum=0.2)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.rows, rows) and not list(memory.parameters())


def test_rows_that_changed_before_the_backward_are_refused(scene):
    rows, features = scene
    memory = IdentityMemory(rows, temperature=0.01, momentum=0.2)
    first, second = (memory(features.clone().requires_grad_(), LABELS) for _ in range(2))
    first.backward()
    with pytest.raises(RuntimeError, match="inplace operation"):
        second.backward()


def test_absent_parts_neither_choose_the_hardest_sample_nor_are_forgotten():
    generator = torch.Generator().manual_seed(4)
    for _ in range(30):
        rows = F.normalize(torch.randn(6, 8, generator=generator), dim=1)
        seen = (torch.rand(12, 4, generator=generator) > 0.4).repeat_interleave(2, dim=1)
        seen[:, :2] = True  # the whole person always is
        features = F.normalize(torch.randn(12, 8, generator=generator) * seen, dim=1)
        labels = torch.randint(0, 6, (12,), generator=generator)
        expected = rows.clone()
        for identity in set(labels.tolist()):
            row, fits = rows[identity], []
            for place in (labels == identity).nonzero().flatten().tolist():
                length = row[seen[place]].norm()
                filled = torch.where(seen[place], features[place] * length, row)  # unseen: as it is remembered
                fits.append((float(features[place] @ row / length), filled))
            moved = 0.2 * row + 0.8 * min(fits, key=lambda fit: fit[0])[1]
            expected[identity] = moved / moved.norm()
        unseen = [k for k in range(6) if k in labels and not seen[labels == k][:, 2:].any()]
        before = rows.clone()
        update_with_hardest(rows, features, labels, 0.2, seen.float())
        torch.testing.assert_close(rows, expected)
        for identity in unseen:  # nobody showed a part: its directions are as before
            torch.testing.assert_close(F.normalize(rows[identity, 2:], dim=0), F.normalize(before[identity, 2:], dim=0))


def test_everything_seen_is_the_plain_update(scene):
    rows, features = scene
    plain, seen = rows.clone(), rows.clone()
    update_with_hardest(plain, features, LABELS, 0.2)
    update_with_hardest(seen, features, LABELS, 0.2, torch.ones_like(features))
    torch.testing.assert_close(plain, seen)


def test_an_empty_batch_gives_zero(scene):
    rows, _ = scene
    memory = IdentityMemory(rows, temperature=0.01, momentum=0.2)
    nothing = torch.zeros(0, 5, requires_grad=True)
    loss = memory(nothing, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(memory.rows, rows)
