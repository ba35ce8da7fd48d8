"""What a pool holds, whose places new images take, and how it is drawn from."""

import pytest
import torch
from tiny import filled_pool, tiny_generator

from avalanche_magd.distillation import Distillation, LessonBatch, Pool
from avalanche_magd.distillation.generation import Generation
from avalanche_magd.distillation.pool import stratified_draw

CPU = torch.device("cpu")


def test_a_pool_costs_one_forward_per_lesson_and_is_balanced(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(2, 5, 9))
    generator.pixel_range.set(torch.zeros(1), torch.ones(1))
    pool = filled_pool(Distillation(pool_size=31, num_inference_steps=4), generator, rng)
    assert generator.forwards == 31 * 4 == len(pool.lessons.t)
    assert pool.images.shape == (31, 1, 8, 8)
    assert 0 <= pool.images.min() < pool.images.max() <= 1
    assert sorted(pool.counts.values()) == [10, 10, 11]
    assert pool.classes == sorted(pool.counts) == [2, 5, 9]
    assert pool.lessons.x_t.dtype == pool.lessons.target.dtype == torch.float16


def test_a_pool_stays_within_its_bytes_and_keeps_every_image(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    distillation = Distillation(pool_size=40, num_inference_steps=6, max_pool_bytes=40 * 1200)
    pool = filled_pool(distillation, generator, rng)
    assert pool.nbytes <= 40 * 1200
    assert len(pool.labels) == 40
    assert pool.lessons_per_image == distillation.lessons_per_image(generator) == 3
    # Of each run's lessons some are chosen, evenly over t: so all weigh the same.
    thirds = torch.histc(pool.lessons.t.float(), bins=3, min=0, max=1000) / 120
    torch.testing.assert_close(thirds, torch.full((3,), 1 / 3), atol=0.1, rtol=0)
    assert (pool.lessons.weight == 999 / 3).all()


def test_draws_follow_the_weights_and_spread_over_them(rng: torch.Generator) -> None:
    cumulative = torch.tensor([1.0, 1.0, 3.0, 6.0], dtype=torch.float64).cumsum(0)
    drawn = stratified_draw(cumulative, 11, rng)
    assert drawn.bincount(minlength=4).tolist() == [1, 1, 3, 6]


def test_lessons_are_drawn_by_their_weight_in_single_precision(rng: torch.Generator) -> None:
    pool, t = Pool(2, 2, (1, 2, 2), CPU), torch.tensor([900, 100, 700, 50])
    images, labels = torch.rand(4, 1, 2, 2).half(), torch.tensor([3, 3, 5, 5])
    source, weight = torch.ones(4, dtype=torch.int8), torch.tensor([1.0, 3.0, 2.0, 2.0])
    lessons = LessonBatch(images, t, labels, images, source, weight)
    pool.write(torch.tensor([0, 1]), torch.zeros(2, 1, 2, 2), torch.tensor([3, 5]), lessons)
    assert pool.classes == []
    pool.end_pass()
    drawn = pool.draw_lessons(80, rng)
    counts = {int(t): int((drawn.t == t).sum()) for t in drawn.t.unique()}
    assert counts == {50: 20, 100: 30, 700: 20, 900: 10}
    assert drawn.x_t.dtype == drawn.target.dtype == torch.float32
    assert torch.equal(drawn.x_t[drawn.t == 900][0], images[0].float())


def test_images_are_drawn_evenly_over_the_classes(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(2, 5, 9))
    pool = filled_pool(Distillation(pool_size=30, num_inference_steps=2), generator, rng)
    for _ in range(5):
        labels = pool.labels[pool.draw_slots(12, rng)]
        assert labels.bincount()[[2, 5, 9]].tolist() == [4, 4, 4]
    assert len(pool.draw_slots(100, rng)) == 100


def test_images_are_drawn_by_their_weight_within_each_class(rng: torch.Generator) -> None:
    pool = Pool(6, 0, (1, 2, 2), CPU)
    labels = torch.tensor([4, 7, 4, 7, 7])  # and an empty slot
    pool.write(torch.arange(5), torch.zeros(5, 1, 2, 2), labels)
    pool.end_pass()
    weights = torch.tensor([1.0, 2.0, 3.0, 3.0, 5.0, 9.0])
    drawn = pool.draw_slots(800, rng, weights).bincount(minlength=6)
    assert (drawn - torch.tensor([100, 80, 300, 120, 200, 0])).abs().max() <= 1


def test_a_small_pass_renews_the_oldest_and_restores_the_balance(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    distillation = Distillation(pool_size=12, num_inference_steps=2)
    pool = distillation.empty_pool(generator)

    def fill(count: int, classes: list[int]) -> None:
        teacher = distillation.teacher(generator, classes, rng)
        Generation().fill(pool, count, teacher, distillation.mode)

    fill(4, [0, 1])
    assert pool.counts == {0: 2, 1: 2}
    assert len(pool.draw_lessons(20, rng).t) == 20
    first = pool.images[:4].clone()
    fill(8, [0, 1])
    assert pool.counts == {0: 6, 1: 6}
    assert torch.equal(pool.images[:4], first)
    generator.add_classes([2])
    fill(3, [0, 1, 2])
    assert sorted(pool.counts.values()) == [3, 4, 5]
    assert pool.counts[2] == 3
    renewed = (pool.images[:4] != first).flatten(1).any(1)
    assert renewed.sum() == 3
    # However many images a class has, its lessons are drawn as often.
    drawn = pool.draw_lessons(3000, rng).labels.bincount() / 3000
    torch.testing.assert_close(drawn, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    fill(2, [0, 1, 2])
    assert pool.counts == {0: 4, 1: 4, 2: 4}
    lessons, weights = pool.lessons, pool.lessons.weight.view(12, 2)
    assert torch.equal(lessons.labels.view(12, 2), pool.labels[:, None].expand(12, 2))
    torch.testing.assert_close(weights.sum(1), torch.full((12,), 999.0))


def test_each_pass_takes_the_places_of_the_oldest_images(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0,))
    distillation = Distillation(pool_size=4, num_inference_steps=2)
    pool = distillation.empty_pool(generator)
    teacher = distillation.teacher(generator, [0], rng)
    renewed = []
    for _ in range(5):
        before = pool.images.clone()
        Generation().fill(pool, 2, teacher, distillation.mode)
        renewed.append((pool.images != before).flatten(1).any(1).nonzero()[:, 0].tolist())
    assert renewed == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]


def test_a_pool_without_its_lessons_keeps_its_images(rng: torch.Generator) -> None:
    generator = tiny_generator(classes=(0, 1))
    pool = filled_pool(Distillation(pool_size=8, num_inference_steps=5), generator, rng)
    images, before = pool.images.clone(), pool.nbytes
    pool.drop_lessons()
    assert pool.nbytes < before / 4
    assert torch.equal(pool.images, images)
    assert pool.labels[pool.draw_slots(4, rng)].bincount().tolist() == [2, 2]


def test_a_pool_without_an_image_for_each_class_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="leaves some of the 3 classes without an image"):
        filled_pool(Distillation(pool_size=2), tiny_generator(classes=(0, 1, 2)), rng)
