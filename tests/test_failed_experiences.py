"""An experience that was not learnt to its end leaves nothing behind that counts as known."""

from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from callbacks import at, stop_after
from tiny import Anew, naive, tiny_generator, tiny_plugin, tiny_training

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.distillation import Distillation, Pool


def magd_with_stop(steps: int, first: int = 0) -> tuple[MAGDPlugin, Any]:
    """A plugin whose generator is interrupted once, after some steps of an experience."""
    training = tiny_training(model=tiny_generator())
    stop = stop_after(steps, KeyboardInterrupt)
    training.plugins.append(stop)
    return MAGDPlugin(training, seed=0), stop


def weights_of(model: Any) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_an_interrupted_first_experience_is_trained_again_as_without_the_plugin(
    digits: Any,
) -> None:
    plugin, stop = magd_with_stop(1)
    strategies = [naive([]), naive([plugin])]
    strategies[1].model.load_state_dict(strategies[0].model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        strategies[1].train(digits.train_stream[0])
    assert plugin.generator is not None
    assert plugin.generator.classes == []
    plugin.generator_strategy.plugins.remove(stop)
    again = split_digits(5, seed=0).train_stream[0]  # as a notebook's cell that is run again
    for strategy in strategies:
        torch.manual_seed(0)
        strategy.train(again)
    assert torch.equal(*(weights_of(strategy.model) for strategy in strategies))
    assert plugin.generator.classes == sorted(again.classes_in_this_experience)


def test_classes_of_a_failed_experience_are_not_replayed_later(digits: Any) -> None:
    plugin, stop = magd_with_stop(1)
    training = plugin.generator_strategy
    training.plugins.remove(stop)
    strategy = naive([plugin])
    strategy.train(digits.train_stream[0])
    training.plugins.append(stop)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(digits.train_stream[1])
    training.plugins.remove(stop)
    pools = []
    strategy.plugins.append(at("before_training_exp", lambda _: pools.append(plugin.replay.past)))
    strategy.train(digits.train_stream[2])
    learnt = [digits.train_stream[index].classes_in_this_experience for index in (0, 2)]
    assert pools[0].classes == sorted(learnt[0])
    assert plugin.generator.classes == sorted([*learnt[0], *learnt[1]])


def test_a_part_of_an_online_stream_that_failed_teaches_no_class(digits: Any) -> None:
    parts = list(split_online_stream(digits.train_stream[:2], 100, seed=0))
    training = tiny_training()
    training.train(parts[0])
    before = training.model.classes
    stop = stop_after(0, KeyboardInterrupt)
    training.plugins.append(stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(parts[-1])
    assert training.model.classes == before
    training.plugins.remove(stop)
    training.train(parts[-1])
    assert set(training.model.classes) > set(before)


def test_slots_of_an_interrupted_pass_are_filled_again(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_, second, third, fourth = split_online_stream(digits.train_stream[:2], 80, seed=0)
    distillation = Distillation(pool_size=20, num_inference_steps=2, online_share=1.0)
    training = tiny_training(distillation=distillation)
    for part in (first, second):
        training.train(part)
    pool, write, written = training.pool, Pool.write, []
    assert pool is not None

    def interrupted(pool: Pool, *args: Any) -> None:
        write(pool, *args)
        written.extend(args[0].tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(third)
    monkeypatch.undo()
    assert written
    assert sum(pool.counts.values()) == 20 - len(written)
    for part in (third, fourth):
        training.train(part)
    assert training.pool is pool
    assert sum(pool.counts.values()) == 20
    assert len(set(pool.draw_slots(400, training.rng).tolist())) == 20


def test_old_classes_are_generated_once_although_the_dataset_is_made_anew(digits: Any) -> None:
    lessons = []
    for wrapped in (False, True):
        plugin = tiny_plugin()
        strategy = naive([plugin])
        for experience in digits.train_stream[:2]:
            strategy.train(Anew(experience) if wrapped else experience)
        lessons.append(plugin.cost.lessons)
    assert Anew(digits.train_stream[0]).dataset is not Anew(digits.train_stream[0]).dataset
    assert lessons[0] == lessons[1]
