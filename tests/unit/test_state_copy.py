"""A copy of the state stays what it was while the state goes on, in memory that every copy uses again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from learner.storage.state_copy import StateCopy


def test_a_copy_does_not_change_with_the_state() -> None:
    weight, count = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)), torch.tensor(4)
    copied = StateCopy().take({"model": {"w": weight}, "optimizer": {"w.step": count}})
    with torch.no_grad():
        weight.add_(1)
    count.add_(1)
    assert copied["model"]["w"].equal(torch.arange(6.0).reshape(2, 3))
    assert not copied["model"]["w"].requires_grad
    assert copied["optimizer"]["w.step"].equal(torch.tensor(4))


def test_a_later_copy_uses_the_same_memory() -> None:
    copy, weight = StateCopy(), torch.zeros(4)
    first = copy.take({"model": {"w": weight}})["model"]["w"].data_ptr()
    weight.fill_(7)
    again = copy.take({"model": {"w": weight}})["model"]["w"]
    assert again.data_ptr() == first
    assert again.tolist() == [7] * 4


def test_what_the_state_begins_and_ceases_to_hold_is_followed() -> None:
    copy = StateCopy()
    assert copy.take({"model": {"w": torch.zeros(2)}, "optimizer": {}}).keys() == {"model", "optimizer"}
    moments = {"w.exp_avg": torch.ones(2), "w.step": torch.tensor(1.0)}
    grown = copy.take({"model": {"w": torch.zeros(2)}, "optimizer": moments, "rehearsal": {"e": torch.ones(3)}})
    assert grown["optimizer"]["w.exp_avg"].tolist() == [1, 1]
    other = copy.take({"model": {"w": torch.zeros(2)}, "optimizer": moments, "rehearsal": {"e": torch.full((5,), 2)}})
    assert other["rehearsal"]["e"].tolist() == [2] * 5
    assert copy.take({"model": {"w": torch.zeros(2)}, "optimizer": moments}).keys() == {"model", "optimizer"}


def test_views_and_other_layouts_are_copied_as_what_they_show() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    copied = StateCopy().take({"model": {"transposed": whole.T, "row": whole[1]}})["model"]
    assert copied["transposed"].is_contiguous()
    assert copied["transposed"].equal(whole.T)
    assert copied["row"].tolist() == [4, 5, 6, 7]


def test_tensors_that_are_made_one_at_a_time_are_never_held_together() -> None:
    alive: list[int] = []

    class Gathered(Mapping[str, Tensor]):
        """Makes each tensor when it is asked for, as gathering a sharded one does."""

        def __getitem__(self, name: str) -> Tensor:
            alive.append(int(name))
            return torch.full((2,), float(name))

        def __iter__(self) -> Iterator[str]:
            return iter(("1", "2", "3"))

        def __len__(self) -> int:
            return 3

    copied = StateCopy().take({"model": Gathered()})["model"]
    assert alive == [1, 2, 3], "each is asked for once, in order"
    assert [tensor[0].item() for tensor in copied.values()] == [1, 2, 3]
