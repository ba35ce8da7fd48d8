"""Every strategy that Avalanche exports, with and without MAGD, on four kinds of benchmark.

``python tests/compatibility.py`` writes the table into the README of the examples;
``test_compatibility.py`` compares the table with what the strategies do.
"""

import contextlib
import io
import signal
import string
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks import class_incremental_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.core import SupervisedPlugin
from avalanche.models import (
    PNN,
    FeatureExtractorModel,
    FeCAMClassifier,
    IncrementalClassifier,
    MlpVAE,
    MTSimpleMLP,
    NCMClassifier,
    SCRModel,
    SimpleMLP,
)
from avalanche.models.packnet import PackNetModel
from avalanche.training import plugins, supervised
from avalanche.training.supervised.lamaml import LaMAML
from avalanche.training.supervised.lamaml_v2 import LaMAML as LaMAMLWithBuffer
from diffusers import UNet2DModel
from tiny import tiny_plugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from avalanche_magd import MAGDPlugin
from avalanche_magd.benchmarks import split_digits
from avalanche_magd.replay import MiniBatches
from avalanche_magd.replay.mini_batches import AS_IN_0_1

KINDS = {
    "nc": "`nc_benchmark`",
    "class-incremental": "`class_incremental_benchmark`",
    "multi-head": "task labels, multi-head model",
    "online": "`split_online_stream`",
}
WORKS, NOTHING, NO_PLUGINS = "works", "nothing to replay", "takes no plugins"
STORES, COUNTS = "works, stores generated rows", "leaves generated rows in metrics"
README = Path(__file__).parents[1] / "examples" / "README.md"
START, END = "<!-- compatibility -->", "<!-- end of compatibility -->"


class Outcome(NamedTuple):
    """What came of a run."""

    error: str = ""
    """Type and message, if the run failed."""
    has_plugin: bool = False
    """Whether the strategy has taken MAGD among its plugins."""
    replayed: int = 0
    """Generated rows that some network was shown in training."""
    stored: int = 0
    """Generated rows that the strategy holds after the run."""
    counted: int = 0
    """Generated rows that were left in a mini-batch for the evaluator."""


def two_columns(benchmark: Any, images_per_class: int | None = None) -> Any:
    """The same images on Avalanche's newer interface, whose mini-batches carry no task labels."""
    streams = {}
    for name in ("train", "test"):
        samples = [sample for exp in benchmark.streams[name] for sample in exp.dataset]
        by_class = [[s for s in samples if s[1] == label] for label in range(10)]
        samples = [sample for group in by_class for sample in group[:images_per_class]]
        labels = [label for _, label, _ in samples]
        images = torch.stack([image for image, *_ in samples])
        streams[name] = AvalancheDataset(
            [TensorDataset(images, torch.tensor(labels))],
            data_attributes=[DataAttribute(labels, "targets")],
        )
    return class_incremental_benchmark(streams, num_experiences=5, class_order=list(range(10)))


def experiences(kind: str) -> list[Any]:
    """Two experiences of two classes, or four parts of an online stream of two."""
    benchmark = split_digits(5, seed=0, return_task_id=kind == "multi-head")
    if kind == "class-incremental":
        benchmark = two_columns(benchmark, images_per_class=64)
    stream = benchmark.train_stream[:2]
    if kind != "online":
        return list(stream)
    parts = list(split_online_stream(stream, 100, seed=0))
    return [parts[0], parts[1], parts[3], parts[4]]


# Strategies: called with a model, and with what all of them take.

Build = Callable[..., Any]


def with_plugin(plugin: Callable[[nn.Module], SupervisedPlugin]) -> Build:
    """A naive strategy with one of Avalanche's plugins that have no strategy."""

    def build(model: nn.Module, **common: Any) -> Any:
        common["plugins"] = [*common["plugins"], plugin(model)]
        return supervised.Naive(model=model, **common)

    return build


def strategy(cls: type, **arguments: Any) -> Build:
    return lambda model, **common: cls(model=model, **arguments, **common)


def own_model(make: Callable[[], nn.Module], cls: type, **arguments: Any) -> Build:
    """A strategy that needs a model of another kind."""

    def build(model: nn.Module, **common: Any) -> Any:
        model = make()
        common["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.01)
        return cls(model=model, **arguments, **common)

    return build


def icarl(model: nn.Module, **common: Any) -> Any:
    extractor, classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), nn.Linear(16, 10)
    network = nn.Sequential(extractor, classifier)
    common["optimizer"] = torch.optim.SGD(network.parameters(), lr=0.01)
    common.pop("criterion")
    return supervised.ICaRL(
        feature_extractor=extractor,
        classifier=classifier,
        memory_size=20,
        buffer_transform=None,
        fixed_memory=True,
        **common,
    )


def er_aml(model: nn.Module, **common: Any) -> Any:
    extractor = getattr(model, "features", None)
    flat = nn.Sequential(nn.Flatten(), *extractor)
    return supervised.ER_AML(
        model=model, feature_extractor=flat, mem_size=200, batch_size_mem=5, **common
    )


def slda(model: nn.Module, **common: Any) -> Any:
    common.pop("optimizer")
    return supervised.StreamingLDA(
        slda_model=nn.Flatten(), input_size=64, num_classes=10, **common
    )


def scr() -> nn.Module:
    return SCRModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), nn.Linear(16, 8))


def scr_strategy(model: nn.Module, **common: Any) -> Any:
    common.pop("criterion")
    return own_model(scr, supervised.SCR, mem_size=20, batch_size_mem=10)(model, **common)


def feature_distillation(model: nn.Module, **common: Any) -> Any:
    common["plugins"] = [*common["plugins"], plugins.FeatureDistillationPlugin()]
    return own_model(
        lambda: FeatureExtractorModel(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), IncrementalClassifier(16)
        ),
        supervised.Naive,
    )(model, **common)


def generative_replay(model: nn.Module, **common: Any) -> Any:
    vae = MlpVAE((1, 8, 8), nhid=4)
    generator_strategy = supervised.VAETraining(
        model=vae,
        optimizer=torch.optim.SGD(vae.parameters(), lr=0.01),
        train_mb_size=16,
        evaluator=None,
    )
    return supervised.GenerativeReplay(
        model=model, generator_strategy=generator_strategy, **common
    )


class Classified(nn.Module):
    """Features and one of Avalanche's classifiers that need their plugin."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.feature_extractor = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.train_classifier = nn.Linear(16, 10)
        self.eval_classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.feature_extractor(x)
        return self.train_classifier(x) if self.training else self.eval_classifier(x)


def classified(plugin: Callable[[], SupervisedPlugin], classifier: type[nn.Module]) -> Build:
    def build(model: nn.Module, **common: Any) -> Any:
        common["plugins"] = [*common["plugins"], plugin()]
        return own_model(lambda: Classified(classifier()), supervised.Naive)(model, **common)

    return build


s, p = supervised, plugins
STRATEGIES: dict[str, Build] = {
    "Naive": strategy(s.Naive),
    "Cumulative": strategy(s.Cumulative),
    "JointTraining": strategy(s.JointTraining),
    "FromScratchTraining": strategy(s.FromScratchTraining),
    "Replay": strategy(s.Replay, mem_size=20),
    "GDumb": strategy(s.GDumb, mem_size=20),
    "AGEM": strategy(s.AGEM, patterns_per_exp=10, sample_size=10),
    "GEM": strategy(s.GEM, patterns_per_exp=10),
    "MIR": strategy(s.MIR, batch_size_mem=5, mem_size=20, subsample=10),
    "DER": strategy(s.DER, mem_size=20, batch_size_mem=5),
    "ER_ACE": strategy(s.ER_ACE, mem_size=20, batch_size_mem=5),
    "ER_AML": er_aml,
    "ICaRL": icarl,
    "GSS_greedy": strategy(s.GSS_greedy, mem_size=600, input_size=[1, 8, 8]),
    "CoPE": strategy(s.CoPE, mem_size=20, p_size=10, n_classes=10),
    "RARPlugin": with_plugin(
        lambda model: p.RARPlugin(batch_size_mem=5, mem_size=20, name_ext_layer="features.0")
    ),
    "FeatureReplay": strategy(s.FeatureReplay, mem_size=20, batch_size_mem=5),
    "SCR": scr_strategy,
    "MER": strategy(s.MER, mem_size=20, batch_size_mem=5, n_inner_steps=2),
    "LaMAML": strategy(LaMAML, n_inner_updates=2),
    "LaMAML, with buffer": strategy(LaMAMLWithBuffer, n_inner_updates=2, max_buffer_size=20),
    "EWC": strategy(s.EWC, ewc_lambda=1.0),
    "SynapticIntelligence": strategy(s.SynapticIntelligence, si_lambda=1.0),
    "MAS": strategy(s.MAS),
    "RWalkPlugin": with_plugin(lambda model: p.RWalkPlugin()),
    "LwF": strategy(s.LwF, alpha=1.0, temperature=2.0),
    "LFL": strategy(s.LFL, lambda_e=0.1),
    "FeatureDistillationPlugin": feature_distillation,
    "CWRStar": strategy(s.CWRStar, cwr_layer_name="classifier"),
    "StreamingLDA": slda,
    "NCM, current data": classified(p.CurrentDataNCMUpdate, NCMClassifier),
    "NCM, memory": classified(lambda: p.MemoryNCMUpdate(mem_size=20), NCMClassifier),
    "FeCAM, current data": classified(p.CurrentDataFeCAMUpdate, FeCAMClassifier),
    "FeCAM, memory": classified(lambda: p.MemoryFeCAMUpdate(mem_size=40), FeCAMClassifier),
    "PNNStrategy": own_model(
        lambda: PNN(num_layers=1, in_features=64, hidden_features_per_column=16), s.PNNStrategy
    ),
    "PackNet": own_model(
        lambda: PackNetModel(SimpleMLP(num_classes=10, input_size=64, hidden_size=16)),
        s.PackNet,
        post_prune_epochs=1,
        prune_proportion=0.5,
    ),
    "BiC": strategy(s.BiC, mem_size=20, stage_2_epochs=1),
    "GenerativeReplay": generative_replay,
}


class Witness(SupervisedPlugin):
    """Remembers every generated image, and counts where they turn up."""

    def __init__(self, magd: MAGDPlugin) -> None:
        super().__init__()
        self.magd = magd
        self.generated: set[bytes] = set()
        self.replayed = 0
        self.counted = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.magd.replay is not None:
            for pool in (self.magd.replay.past, self.magd.replay.current):
                self.generated |= set(rows_of(pool.images)) if pool else set()

    def look(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A forward hook of every network there is."""
        if not isinstance(module, UNet2DModel) and arguments:
            self.replayed += self.generated_among(arguments[0])

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.counted += self.generated_among(strategy.mb_x)
        if self.generated and isinstance(strategy.mb_output, Tensor):
            self.counted += abs(len(strategy.mb_output) - len(strategy.mb_x))

    def generated_among(self, images: Any) -> int:
        if not self.generated or not isinstance(images, Tensor):
            return 0
        return sum(row in self.generated for row in rows_of(images))


def rows_of(images: Tensor) -> list[bytes]:
    """Each image's bytes; nothing if these are no digits."""
    if images.shape[1:] != (1, 8, 8):
        return []
    return [row.tobytes() for row in images.detach().float().cpu().numpy()]


def reachable_tensors(root: Any, but: tuple[Any, ...]) -> Iterator[Tensor]:
    """Every tensor that an object holds, directly or through what it holds."""
    seen = {id(each) for each in but}
    stack = [root]
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, dict):
            stack.extend(each.values())
        elif isinstance(each, (list, tuple, set, deque)):
            stack.extend(each)
        else:
            stack.extend(getattr(each, "__dict__", {}).values())


def hang(*_: Any) -> None:
    raise TimeoutError("does not end")


signal.signal(signal.SIGALRM, hang)


def run(name: str, kind: str, *, magd: bool, whole: bool = False) -> Outcome:
    """Train one strategy on one kind of benchmark, its mini-batches served in parts or whole."""
    torch.manual_seed(0)
    model: nn.Module = (
        MTSimpleMLP(input_size=64, hidden_size=16)
        if kind == "multi-head"
        else SimpleMLP(num_classes=10, input_size=64, hidden_size=16)
    )
    mini_batches = AS_IN_0_1 if whole else MiniBatches()
    plugin = tiny_plugin(
        generator_iterations=2, pool_size=8, num_inference_steps=2, mini_batches=mini_batches
    )
    witness = Witness(plugin)
    hook = nn.modules.module.register_module_forward_pre_hook(witness.look)
    signal.alarm(30)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            strategy = STRATEGIES[name](
                model,
                optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
                criterion=nn.CrossEntropyLoss(),
                train_mb_size=16,
                train_epochs=2,
                eval_mb_size=64,
                plugins=[plugin, witness] if magd else [],
                evaluator=None,
            )
            stream = experiences(kind)
            at_once = isinstance(strategy, supervised.JointTraining)
            for each in [stream] if at_once else stream:
                strategy.train(each, eval_streams=[])
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".replace("`", "").split())
        return Outcome(error=message[:110])
    finally:
        signal.alarm(0)
        hook.remove()
    stored = sum(
        witness.generated_among(tensor)
        for tensor in reachable_tensors(strategy, (plugin, witness, plugin.generator_strategy))
    )
    has_plugin = plugin in strategy.plugins
    return Outcome("", has_plugin, witness.replayed, stored, witness.counted)


def status(name: str, kind: str, *, whole: bool = False) -> str:
    """A cell of the table: what a strategy does with MAGD, or the error it has without."""
    bare, ours = run(name, kind, magd=False), run(name, kind, magd=True, whole=whole)
    if bare.error or ours.error:
        same = bare.error.split(":")[0] == ours.error.split(":")[0]
        return bare.error if same else f"FAILS ONLY WITH MAGD: {ours.error}"
    if ours.stored:
        return STORES
    if ours.counted:
        return COUNTS
    if ours.replayed:
        return WORKS
    return NOTHING if ours.has_plugin else NO_PLUGINS


def table(statuses: dict[tuple[str, str], str]) -> str:
    """The table in Markdown, and its errors as notes below."""
    notes: dict[str, str] = {}
    lines = ["| strategy or plugin | " + " | ".join(KINDS.values()) + " |", "|---" * 5 + "|"]
    for name in STRATEGIES:
        cells = []
        for kind in KINDS:
            cell = statuses[name, kind]
            if cell not in (WORKS, NOTHING, NO_PLUGINS, STORES):
                note = notes.setdefault(cell, string.ascii_lowercase[len(notes)])
                cell = f"fails bare ({note})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"({note}) `{error}`  " for error, note in notes.items()]
    return "\n".join(lines)


def main() -> None:
    """Write the table into the examples' README, between its marks."""
    statuses = {(name, kind): status(name, kind) for name in STRATEGIES for kind in KINDS}
    before, rest = README.read_text().split(START)
    after = rest.split(END)[1]
    README.write_text(f"{before}{START}\n{table(statuses)}\n{END}{after}")


if __name__ == "__main__":
    main()
