import math

import pytest
import torch
from open_clip.loss import ClipLoss

from stages.train.losses import NeighbourPool, clip_loss, unimodal_loss


def unit(rows: list[list[float]]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_the_pool_is_first_in_first_out() -> None:
    pool = NeighbourPool(3, 2)
    rows = unit([[1, 0], [0, 1], [-1, 0], [0, -1]])
    pool.push(rows[:2])
    assert (int(pool.filled), int(pool.cursor)) == (2, 2)
    pool.push(rows[2:])
    assert (int(pool.filled), int(pool.cursor)) == (3, 1)
    assert pool.rows.tolist() == [rows[3].tolist(), rows[1].tolist(), rows[2].tolist()]
    many = unit([[1, i] for i in range(10)])
    pool.push(many)
    assert {tuple(row) for row in pool.rows.tolist()} == {tuple(row) for row in many[-3:].tolist()}


def test_the_nearest_row_is_that_of_highest_cosine_and_carries_no_gradient() -> None:
    pool = NeighbourPool(4, 2)
    query = unit([[1, 0.1], [0.1, 1]]).requires_grad_()
    assert torch.equal(pool.nearest(query), query)  # itself while the pool is empty
    pool.push(unit([[1, 0], [0, 1], [-1, -1]]))
    found = pool.nearest(query)
    assert found.tolist() == [[1, 0], [0, 1]]
    assert not found.requires_grad


def test_faiss_finds_the_same_rows_as_a_product() -> None:
    torch.manual_seed(1)
    rows, queries = (torch.nn.functional.normalize(torch.randn(num, 16), dim=1) for num in (3000, 40))
    pools = [NeighbourPool(4000, 16, faiss_from=size) for size in (1, 10_000)]
    for pool in pools:
        pool.push(rows)
    assert torch.equal(pools[0].nearest(queries), pools[1].nearest(queries))
    assert torch.equal(pools[0].nearest(rows[:7]), rows[:7])


def test_the_pool_goes_into_a_checkpoint() -> None:
    pool = NeighbourPool(3, 2)
    pool.push(unit([[1, 2], [2, 1]]))
    other = NeighbourPool(3, 2)
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other.rows, pool.rows)
    assert int(other.filled) == 2


def test_the_unimodal_loss_by_hand_on_three_rows() -> None:
    pool = NeighbourPool(8, 2)
    pool.push(unit([[1, 0], [0, 1], [-1, 0], [0, -1]]))
    first = unit([[0.9, 0.1], [0.1, 0.9], [-0.9, 0.1]])  # neighbours: east, north, west
    second = unit([[1, 1], [0, 1], [-1, 1]]).requires_grad_()
    r = math.sqrt(0.5)
    logits = [[2 * r, 2 * r, -2 * r], [0.0, 2.0, 0.0], [-2 * r, 2 * r, 2 * r]]
    by_hand = sum(math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)) / 3
    loss = unimodal_loss(first, second, pool, torch.tensor(2.0))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    loss.backward()
    assert second.grad is not None
    assert second.grad.abs().sum() > 0
    assert int(pool.filled) == 7
    assert torch.equal(pool.rows[4:7], first)  # the first view goes in, after the search


def test_clip_loss_agrees_with_open_clips() -> None:
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    scale = torch.tensor(14.3)
    assert clip_loss(images, texts, scale).item() == pytest.approx(ClipLoss()(images, texts, scale).item(), rel=1e-6)
