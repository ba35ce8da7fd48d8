"""Names of version 0.1, which go on to work for one release, with a ``DeprecationWarning``.

Modules have moved into folders and some things in them have other names: an import of the old
module finds the new one, in scripts and in checkpoints. Arguments have moved too, see
:func:`old_arguments`.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, TypeVar

PACKAGE: Final = "avalanche_magd"
MODULES: Final = {
    "checkpointing": "checkpoints.strategy",
    "classes": "diffusion.label_map",
    "cost": "distillation.cost",
    "distillation.batch": "distillation.lessons",
    "generator": "diffusion.generator",
    "latents": "diffusion.autoencoder",
    "metrics.forgetting": "metrics.distances",
    "metrics.frechet": "metrics.distances",
    "metrics.judge": "metrics.classifier",
    "metrics.kernel": "metrics.distances",
    "metrics.labels": "metrics.classifier",
    "metrics.neighbours": "metrics.distances",
    "networks": "diffusion.networks",
    "pictures": "reporting.plotting",
    "pixels": "diffusion.normalization",
    "processes": "runtime.distributed",
    "prompts": "diffusion.text",
    "randomness": "runtime.random_state",
    "rehearsal": "distillation.teacher",
    "report": "reporting.report",
    "runs": "reporting.run_logger",
    "samplers": "diffusion.samplers",
    "sampling": "diffusion.sampling",
    "schedule": "diffusion.schedule",
    "solver": "distillation.solver",
}
"""New module of each old one."""
NAMES: Final = {
    "ClassTable": "LabelMap",
    "Judge": "EvaluationClassifier",
    "train_judge": "train_evaluation_classifier",
}
"""New name of each old one."""
OLD_TRAINING_ARGUMENTS: Final = {
    "replay_weight": "distillation.replay_weight",
    "online_share": "distillation.online_share",
    "checkpoint_every": ".checkpoint_every",
    "progress": ".progress",
}
OLD_DISTILLATION_ARGUMENTS: Final = {
    "fresh": "on_the_fly",
    "conditional": "guidance.conditional",
    "guidance_scale": "guidance.guidance_scale",
    "classifier_scale": "guidance.classifier_scale",
}
OLD_PLUGIN_ARGUMENTS: Final = {
    "snr_band": "distillation.mode.snr_band",
    "guidance_scale": "distillation.guidance.guidance_scale",
    "max_pool_bytes": "distillation.max_pool_bytes",
    "replay_size": "mini_batches.replay_size",
    "generated_share": "mini_batches.generated_share",
    "soft_label_weight": "mini_batches.soft_label_weight",
    "progress": ".progress",
}
Class = TypeVar("Class", bound=type)


def renamed(module: str, name: str) -> Any:
    """What an old name of a module stands for, with a warning.

    Raises:
        AttributeError: the module never had such a name.
    """
    if name not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{name} is {NAMES[name]} since 0.2.", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(module), NAMES[name])


class OldModules(MetaPathFinder, Loader):
    """Finds the modules of 0.1 under their old names."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """A specification of an old module; ``None`` for others."""
        package, _, module = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and module in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module whose names are those of the new one."""
        new = f"{PACKAGE}.{MODULES[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {new} since 0.2.", DeprecationWarning, stacklevel=2)
        module, content = ModuleType(spec.name), vars(importlib.import_module(new))

        def find(name: str) -> Any:
            return content[name] if name in content else renamed(new, name)

        module.__getattr__ = find  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are found as they are needed."""


def find_old_modules() -> None:
    """Let imports find the modules of 0.1."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())


def old_arguments(moved: Mapping[str, str], **defaults: Any) -> Callable[[Class], Class]:
    """A class decorator: the constructor goes on to take arguments of 0.1.

    Args:
        moved: what each old argument has become: another argument, ``"on_the_fly"``; a field of
            one, ``"guidance.guidance_scale"``; or an attribute, ``".progress"``.
        **defaults: of the arguments whose fields are named.
    """

    def decorate(cls: Class) -> Class:
        init = cls.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def with_old_arguments(self: Any, *args: Any, **kwargs: Any) -> None:
            attributes, given = {}, set(kwargs)
            for name in moved.keys() & kwargs.keys():
                value, (argument, *fields) = kwargs.pop(name), moved[name].split(".")
                if argument:
                    whole = kwargs.get(argument) or defaults.get(argument)
                    kwargs[argument] = _with_field(whole, fields, value)
                else:
                    attributes[fields[0]] = value
                message = f"{cls.__name__}({name}=…) is {moved[name].lstrip('.')} since 0.2."
                warnings.warn(message, DeprecationWarning, stacklevel=2)
            for argument in defaults.keys() & kwargs.keys() - given:  # the others are its fields
                names = {each.name for each in fields_of(kwargs[argument])} & kwargs.keys()
                more = {name: kwargs.pop(name) for name in names if kwargs[name] is not None}
                kwargs[argument] = replace(kwargs[argument], **more)
            init(self, *args, **kwargs)
            vars(self).update(attributes)

        cls.__init__ = with_old_arguments  # type: ignore[misc]
        return cls

    return decorate


def _with_field(whole: Any, fields: list[str], value: Any) -> Any:
    if not fields:
        return value
    first, *rest = fields
    return replace(whole, **{first: _with_field(getattr(whole, first), rest, value)})
