"""The average of the student's weights, and its exchange of places with the student's."""

import math

import pytest
import torch
from torch import nn

from avalanche_magd.distillation.ema import WeightAverage, trainable


def averaged(decay: float) -> tuple[nn.Embedding, WeightAverage]:
    """A student of ones, whose average is of zeros."""
    network = nn.Embedding.from_pretrained(torch.zeros(2, 3), freeze=False)
    average = WeightAverage(network.parameters(), decay)
    network.weight.data.fill_(1.0)
    return network, average


def test_an_average_forgets_its_start_and_has_its_half_life() -> None:
    _, average = averaged(decay=0.9)
    average.update()
    assert average.average[0][0, 0].item() == pytest.approx(0.9)  # decay is (1 + n) / (10 + n)
    average.steps = 10_000
    average.average[0].fill_(0.0)
    half_life = math.log(0.5) / math.log(0.9)
    for _ in range(round(10 * half_life)):
        average.update()
    assert 1 - average.average[0][0, 0].item() == pytest.approx(0.5**10, rel=0.1)


def test_an_average_without_decay_is_the_student() -> None:
    network, average = averaged(decay=0.0)
    average.update()
    assert torch.equal(average.average[0], network.weight)


def test_average_and_student_change_places_without_a_copy() -> None:
    network, average = averaged(decay=0.9)
    student, mean = network.weight.data.data_ptr(), average.average[0].data_ptr()
    average.swap_in()
    assert network.weight.data_ptr() == mean
    assert (network.weight == 0).all()
    average.swap_out(network.parameters())
    assert network.weight.data_ptr() == student
    assert (network.weight == 1).all()
    assert average.average[0].data_ptr() == mean


def test_the_average_is_in_its_attribute_wherever_it_stands() -> None:
    network, average = averaged(decay=0.9)
    for _ in range(2):
        assert (average.average[0] == 0).all()
        average.swap_in()
        assert (average.average[0] == 0).all()
        average.swap_out(network.parameters())
    average.update()
    assert average.average[0][0, 0].item() == pytest.approx(0.9)
    average.swap_in()
    torch.testing.assert_close(network.weight.data, average.average[0])


def test_a_second_exchange_in_the_same_direction_changes_nothing() -> None:
    network, average = averaged(decay=0.9)
    average.swap_out(network.parameters())
    assert (network.weight == 1).all()
    average.swap_in()
    average.swap_in()
    assert (network.weight == 0).all()
    average.swap_out(network.parameters())
    average.swap_out(network.parameters())
    assert (network.weight == 1).all()
    assert (average.average[0] == 0).all()


def test_a_class_that_arrives_while_the_average_stands_in_the_network_is_in_both() -> None:
    network, average = averaged(decay=0.9)
    average.swap_in()
    new_row = torch.full((1, 3), 7.0)
    network.weight = nn.Parameter(torch.cat([network.weight.data, new_row]))
    average.swap_out(network.parameters())
    assert network.weight.tolist() == [[1.0] * 3, [1.0] * 3, [7.0] * 3]
    assert average.average[0].tolist() == [[0.0] * 3, [0.0] * 3, [7.0] * 3]
    assert average.parameters[0] is network.weight
    network.weight.data.add_(1.0)
    average.update()
    # The average goes on from there, row by row; the new row's memory is its own.
    assert average.average[0][2].tolist() == pytest.approx([7.9] * 3)
    assert average.average[0][0].tolist() == pytest.approx([1.8] * 3)


def test_frozen_parameters_are_neither_averaged_nor_exchanged() -> None:
    network = nn.Linear(3, 2)
    network.weight.requires_grad_(False)
    before = network.weight.data_ptr()
    average = WeightAverage(network.parameters(), 0.9)
    assert [each is network.bias for each in average.parameters] == [True]
    assert len(average.average) == len(trainable(network.parameters())) == 1
    average.swap_in()
    assert network.weight.data_ptr() == before


def test_a_network_that_is_all_frozen_is_refused() -> None:
    network = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="parameters are frozen: add adapters, or leave"):
        WeightAverage(network.parameters(), 0.9)
