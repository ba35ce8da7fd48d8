"""Names and arguments of version 0.1 work for one release, with a DeprecationWarning."""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_training
from torch import Tensor, nn

import avalanche_magd
from avalanche_magd import DiffusionGenerator, MAGDPlugin, metrics
from avalanche_magd.distillation import CGGD, MAGD, Distillation
from avalanche_magd.runtime.deprecation import MODULES

RENAMED = {
    "metrics.train_judge": "metrics.train_evaluation_classifier",
    "metrics.Judge": "metrics.EvaluationClassifier",
}
RENAMED_IN_OLD_MODULES = {
    "classes.ClassTable": "diffusion.label_map.LabelMap",
    "metrics.judge.Judge": "metrics.EvaluationClassifier",
    "metrics.judge.train_judge": "metrics.train_evaluation_classifier",
}
SAME_NAMES = {
    "checkpointing.save_checkpoint": "checkpoints.save_checkpoint",
    "checkpointing.maybe_load_checkpoint": "checkpoints.maybe_load_checkpoint",
    "generator.DiffusionGenerator": "DiffusionGenerator",
    "latents.LatentRange": "diffusion.autoencoder.LatentRange",
    "pixels.PixelRange": "diffusion.normalization.PixelRange",
    "prompts.PromptConditioned": "diffusion.text.PromptConditioned",
    "report.write_report": "reporting.write_report",
    "runs.RunLogger": "reporting.RunLogger",
    "schedule.NoiseSchedule": "diffusion.schedule.NoiseSchedule",
}


def find(path: str) -> Any:
    """An object of the package by its module and name."""
    module, _, name = f"avalanche_magd.{path}".rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def _forgotten_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old modules are imported anew: Python warns only when it imports them first."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"avalanche_magd.{name}", raising=False)


@pytest.mark.usefixtures("_forgotten_modules")
@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_an_old_module_has_the_names_of_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"avalanche_magd.{old} is avalanche_magd.{new}"):
        old_module = importlib.import_module(f"avalanche_magd.{old}")
    new_module = importlib.import_module(f"avalanche_magd.{new}")
    own = [
        name
        for name, value in vars(new_module).items()
        if getattr(value, "__module__", None) == new_module.__name__
    ]
    assert own
    for name in own:
        assert getattr(old_module, name) is getattr(new_module, name)


@pytest.mark.filterwarnings("ignore:avalanche_magd.* since 0.2:DeprecationWarning")
@pytest.mark.parametrize(("old", "new"), SAME_NAMES.items())
def test_public_names_of_old_modules_are_found(old: str, new: str) -> None:
    assert find(old) is find(new)


@pytest.mark.filterwarnings("ignore:avalanche_magd.* since 0.2:DeprecationWarning")
@pytest.mark.parametrize(("old", "new"), (RENAMED | RENAMED_IN_OLD_MODULES).items())
def test_an_old_name_is_the_new_object(old: str, new: str) -> None:
    old_name, new_name = old.split(".")[-1], new.split(".")[-1]
    with pytest.warns(DeprecationWarning, match=f"^{old_name} is {new_name} since 0.2"):
        assert find(old) is find(new)


def test_a_classifier_is_trained_under_its_old_name(digits: Any) -> None:
    stream = digits.train_stream[:1]
    with pytest.warns(DeprecationWarning, match="train_judge is train_evaluation_classifier"):
        old = metrics.train_judge(stream)
    new = metrics.train_evaluation_classifier(stream)
    for each, expected in zip(old.parameters(), new.parameters(), strict=True):
        assert torch.equal(each, expected)


@pytest.mark.usefixtures("_forgotten_modules")
@pytest.mark.parametrize(
    "module", ["avalanche_magd.nothing", "avalanche_magd.distillation.nothing"]
)
def test_a_module_that_never_was_is_not_found(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}'"):
        importlib.import_module(module)


@pytest.mark.filterwarnings("ignore:avalanche_magd.* since 0.2:DeprecationWarning")
@pytest.mark.parametrize("module", ["metrics", "classes"])
def test_a_name_that_never_was_is_not_found(module: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        find(f"{module}.nothing")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"fresh": True}, {"on_the_fly": True}),
        ({"conditional": False}, {"guidance": CGGD(conditional=False)}),
        ({"guidance_scale": 2.0}, {"guidance": CGGD(guidance_scale=2.0)}),
        ({"classifier_scale": 0.5}, {"guidance": CGGD(classifier_scale=0.5)}),
        (
            {"guidance_scale": 2.0, "classifier_scale": 0.5, "pool_size": 7},
            {"guidance": CGGD(guidance_scale=2.0, classifier_scale=0.5), "pool_size": 7},
        ),
        (
            {"guidance": CGGD(classifier_scale=0.5), "guidance_scale": 2.0},
            {"guidance": CGGD(guidance_scale=2.0, classifier_scale=0.5)},
        ),
    ],
    ids=str,
)
def test_old_arguments_of_a_distillation_are_those_of_its_guidance(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    with pytest.warns(DeprecationWarning, match=r"Distillation\(\w+=…\) is \S+ since 0.2"):
        distillation = Distillation(**old)
    assert distillation == Distillation(**new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"replay_weight": 0.5}, Distillation(replay_weight=0.5)),
        ({"online_share": 0.1}, Distillation(online_share=0.1)),
        (
            {"replay_weight": 0.0, "distillation": Distillation(pool_size=7)},
            Distillation(pool_size=7, replay_weight=0.0),
        ),
    ],
    ids=str,
)
def test_old_arguments_of_a_training_are_those_of_its_distillation(
    old: dict[str, Any], new: Distillation
) -> None:
    with pytest.warns(
        DeprecationWarning, match=r"MAGDTraining\(\w+=…\) is distillation\.\w+ since"
    ):
        training = tiny_training(**old)
    assert training.distillation == new


@pytest.mark.parametrize(("name", "value"), [("checkpoint_every", 3), ("progress", False)])
def test_old_arguments_of_a_training_are_its_attributes(name: str, value: int) -> None:
    with pytest.warns(DeprecationWarning, match=rf"MAGDTraining\({name}=…\) is {name} since"):
        training = tiny_training(**{name: value})
    assert getattr(training, name) == value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"snr_band": (0.1, 9.0)}, Distillation(MAGD(snr_band=(0.1, 9.0)))),
        ({"guidance_scale": 2.0}, Distillation(guidance=CGGD(guidance_scale=2.0))),
        ({"max_pool_bytes": 10**8}, Distillation(max_pool_bytes=10**8)),
        (
            {"snr_band": (0.1, 9.0), "guidance_scale": 1.5, "max_pool_bytes": 10**8},
            Distillation(
                MAGD(snr_band=(0.1, 9.0)),
                guidance=CGGD(guidance_scale=1.5),
                max_pool_bytes=10**8,
            ),
        ),
    ],
    ids=str,
)
def test_old_arguments_of_the_plugin_are_those_of_its_distillation(
    old: dict[str, Any], new: Distillation
) -> None:
    with pytest.warns(DeprecationWarning, match=r"MAGDPlugin\(\w+=…\) is distillation\.\S+ since"):
        plugin = MAGDPlugin(**old)
    assert plugin.distillation == new


def test_old_and_new_arguments_of_the_plugin_can_be_given_together() -> None:
    with pytest.warns(DeprecationWarning, match=r"MAGDPlugin\(guidance_scale=…\)"):
        plugin = MAGDPlugin(guidance_scale=2.0, pool_size=7, num_inference_steps=5)
    expected = Distillation(pool_size=7, num_inference_steps=5, guidance=CGGD(guidance_scale=2.0))
    assert plugin.distillation == expected


def test_progress_of_the_plugin_is_its_attribute() -> None:
    with pytest.warns(DeprecationWarning, match=r"MAGDPlugin\(progress=…\) is progress since"):
        assert MAGDPlugin(progress=False).progress is False


@pytest.mark.parametrize("build", [Distillation, MAGDPlugin])
def test_arguments_that_never_were_are_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        build(nothing=1)


@pytest.mark.filterwarnings("ignore:.* since 0.2:DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (Distillation, {"guidance_scale": 0.5}, "guidance_scale must be a number from 1 to 100"),
        (MAGDPlugin, {"snr_band": (3.0, 1.0)}, "snr_band must be a pair"),
        (MAGDPlugin, {"max_pool_bytes": 0}, "max_pool_bytes must be at least 1"),
        (tiny_training, {"online_share": 0.0}, r"online_share must be in \(0, 1\]"),
    ],
)
def test_values_of_old_arguments_are_checked(
    build: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize("cls", [Distillation, avalanche_magd.MAGDTraining, MAGDPlugin])
def test_old_arguments_are_not_in_the_signature(cls: type) -> None:
    old = {"fresh", "conditional", "guidance_scale", "progress", "checkpoint_every", "snr_band"}
    assert not old & inspect.signature(cls).parameters.keys()


def test_a_network_may_have_the_old_name_of_the_method_that_resizes_it() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.rooms: list[int] = []

        def make_room(self, num_class_embeds: int) -> None:
            self.rooms.append(num_class_embeds)

        def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
            return self.scale * x_t

    network = Network()
    generator = DiffusionGenerator((1, 8, 8), network)
    with pytest.warns(DeprecationWarning, match="make_room is resize_class_embedding since 0.2"):
        generator.add_classes([0, 1, 2])
    assert network.rooms == [4]
