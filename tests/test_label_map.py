"""Which class of the generator stands for which class, and task, of a benchmark."""

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from avalanche_magd.diffusion.label_map import NULL_LABEL, LabelMap, classes_of

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=30)


@given(PAIRS)
def test_every_class_has_one_id_that_leads_back_to_it(pairs: list[tuple[int, int]]) -> None:
    label_map = LabelMap()
    for pair in pairs:
        extended = label_map.with_classes([pair])
        assert set(label_map.rows) <= set(extended.rows)
        label_map = extended
    assert len(set(label_map.ids)) == len(set(pairs))
    labels, tasks = (torch.tensor(column) for column in zip(*pairs, strict=True))
    ids = label_map.ids_of(labels, tasks)
    assert [tuple(pair) for pair in torch.stack(label_map.labels_of(ids), 1).tolist()] == pairs
    assert torch.equal(label_map.known_ids_of(labels, tasks), ids)
    assert label_map.known(pairs) == set(label_map.ids)


@given(PAIRS)
def test_a_map_is_made_again_from_its_rows(pairs: list[tuple[int, int]]) -> None:
    label_map = LabelMap().with_classes(pairs)
    assert LabelMap(label_map.rows).rows == label_map.rows


def test_a_map_with_more_classes_is_a_copy() -> None:
    label_map = LabelMap().with_classes([(4, 0)])
    extended = label_map.with_classes([(4, 0), (2, 0)])
    assert label_map.ids == [4]
    assert extended.ids == [2, 4]


def test_a_class_index_of_one_label_space_is_its_id() -> None:
    label_map = LabelMap().with_classes([(150, 0), (7, 0)]).with_classes([(3, 2)])
    assert label_map.rows == [(3, 3, 2), (7, 7, 0), (150, 150, 0)]


def test_an_index_that_comes_again_in_another_task_has_the_next_id_above_all() -> None:
    label_map = LabelMap().with_classes([(0, 0), (1, 0)]).with_classes([(1, 1), (0, 1)])
    assert label_map.rows == [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]


@pytest.mark.parametrize(("classes", "count"), [([], 1), ([(0, 0)], 2), ([(0, 0), (4, 0)], 6)])
def test_a_network_needs_an_embedding_for_each_id_up_to_the_largest_and_for_no_class(
    classes: list[tuple[int, int]], count: int
) -> None:
    assert LabelMap().with_classes(classes).num_class_embeds == count


def test_unknown_classes_have_the_null_label() -> None:
    label_map = LabelMap().with_classes([(3, 0), (5, 1)])
    labels, tasks = torch.tensor([3, 3, 5, 9]), torch.tensor([0, 1, 1, 1])
    assert label_map.ids_of(labels, tasks).tolist() == [3, NULL_LABEL, 5, NULL_LABEL]
    assert label_map.ids_of(labels).tolist() == [3, 3, NULL_LABEL, NULL_LABEL]
    assert label_map.known([(3, 0), (3, 1)]) == {3}


def test_unknown_classes_are_refused_where_ids_must_be_known() -> None:
    label_map = LabelMap().with_classes([(3, 0)])
    assert label_map.known_ids_of(torch.tensor([3, 3])).tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"labels \[5, 9\] that the dataset's `targets`"):
        label_map.known_ids_of(torch.tensor([9, 3, 5, 9]))


def test_negative_class_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        LabelMap().with_classes([(-1, 0)])


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (None, {(5, 0), (6, 0)}),
        ([2, 2, 2], {(5, 2), (6, 2)}),
        ([0, 1, 0], {(5, 0), (5, 1), (6, 0)}),
    ],
)
def test_the_classes_of_a_dataset_are_its_pairs_of_target_and_task(
    tasks: list[int] | None, expected: set[tuple[int, int]]
) -> None:
    targets = [5, 5, 6]
    attributes = [DataAttribute(targets, "targets")]
    attributes += [DataAttribute(tasks, "targets_task_labels")] if tasks else []
    data = TensorDataset(torch.zeros(3, 1, 4, 4), torch.tensor(targets))
    assert classes_of(AvalancheDataset([data], data_attributes=attributes)) == expected
