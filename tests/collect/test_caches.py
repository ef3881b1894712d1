import numpy as np
import torch
from torch import Tensor

from steercube.collect.caches import SharedPrefix


def states(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, width, 3, generator=generator) for _ in range(2))
    return keys, values


def after_a_pass(lengths: list[int]) -> tuple[SharedPrefix, tuple[Tensor, Tensor]]:
    """A prefix of three slots for two prompts, behind which six rows ran two more."""
    prefix = SharedPrefix(1, keeps=True)
    prefix.update(*states(2, 3), 0)
    prefix.share(torch.tensor([3, 2]))
    added = states(6, 2, seed=1)
    prefix.update(*added, 0)
    return prefix, added


def test_copies_that_joined_later_have_the_unsteered_past() -> None:
    prefix, (keys, _) = after_a_pass([2, 2])
    rows = prefix.one_row_each(10, torch.tensor([2, 2]), room=4)
    held = rows.layers[0].keys
    assert held.shape == (10, 2, 9, 3)
    assert rows.get_seq_length() == 5
    torch.testing.assert_close(held[:6, :, 3:5], keys)
    torch.testing.assert_close(held[6:8, :, 3:5], keys[:2])
    torch.testing.assert_close(held[8:, :, 3:5], keys[:2])
    for copy in range(5):
        torch.testing.assert_close(held[2 * copy : 2 * copy + 2, :, :3], prefix.layers[0].keys)


def test_padding_moves_before_the_tokens() -> None:
    prefix = SharedPrefix(1, keeps=True)
    prefix.share()
    keys, values = states(4, 3)
    prefix.update(keys, values, 0)
    held = prefix.one_row_each(4, torch.tensor([3, 1]), room=1).layers[0].values
    torch.testing.assert_close(held[0, :, :3], values[0])
    torch.testing.assert_close(held[1, :, 2], values[1, :, 0])
    torch.testing.assert_close(held[3, :, 2], values[3, :, 0])


def test_rows_that_finish_give_their_place_away() -> None:
    prefix, _ = after_a_pass([2, 2])
    rows = prefix.one_row_each(6, torch.tensor([2, 2]), room=2)
    before = rows.layers[0].keys[..., :5, :].clone()
    rows.keep(np.array([0, 5, 2, 4]))
    torch.testing.assert_close(rows.layers[0].keys[..., :5, :], before[[0, 5, 2, 4]])
    new = states(4, 1, seed=2)
    keys, values = rows.update(*new, 0)
    assert keys.shape[-2] == values.shape[-2] == rows.get_seq_length() == 6
    torch.testing.assert_close(keys[..., -1:, :], new[0])


def test_a_sweep_keeps_nothing_of_what_it_adds() -> None:
    prefix = SharedPrefix(1)
    prefix.update(*states(2, 3), 0)
    prefix.share(torch.tensor([3, 3]))
    prefix.update(*states(6, 2), 0)
    assert prefix.layers[0].added is None
    assert prefix.get_seq_length() == 3
