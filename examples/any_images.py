"""Any images: learn the classes of a benchmark in turn, and look at what the generator remembers.

One small convolutional solver with ``MAGDPlugin()`` on digits, Fashion-MNIST or a folder of images
(``ROOT/{train,test}/<class>/<image>``). Prints the accuracy on each experience's classes after
each experience, and writes a report: ``report.md``, with generated images of each class.

Needs no download for digits. Time grows with the image side: on two CPU cores minutes for digits,
a quarter of an hour or more per experience for 32 × 32 colour images.

    python examples/any_images.py --benchmark fashion_mnist --images-per-class 1000 --experiences 2
    python examples/any_images.py --benchmark folder --root my/images --image-size 32
"""

import argparse
import time
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from study import ACCURACY, BENCHMARKS, Solver, load, positive

from avalanche_magd import MAGDPlugin
from avalanche_magd.metrics import generation_metrics, train_evaluation_classifier
from avalanche_magd.reporting import RunLogger, write_report


def main() -> None:
    """Learn, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="digits")
    parser.add_argument("--root", type=Path, help="where the images are")
    parser.add_argument("--image-size", type=int, default=32, help="side of a folder's images")
    parser.add_argument("--images-per-class", type=int, help="of Fashion-MNIST; default: all")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument(
        "--stop-after", type=positive, help="experiences to train on; default: all"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of the solver, per experience")
    parser.add_argument("--iterations", type=int, help="of the generator; default: the plugin's")
    parser.add_argument("--pool-size", type=int, help="default: the plugin's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results/any_images"))
    parser.add_argument("--smoke", action="store_true", help="tiny budgets, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.epochs, arguments.iterations, arguments.pool_size = 1, 20, 40
    arguments.output.mkdir(parents=True, exist_ok=True)
    benchmark = load(arguments, arguments.experiences, arguments.seed)
    torch.manual_seed(arguments.seed)
    image, *_ = benchmark.train_stream[0].dataset[0]
    model = Solver(len(image), benchmark.n_classes)
    plugin = MAGDPlugin(generator_iterations=arguments.iterations, pool_size=arguments.pool_size)
    classifier = train_evaluation_classifier(
        benchmark.train_stream,
        file=arguments.output / "evaluation_classifier.pt",
        device=arguments.device,
    )
    logger = RunLogger(arguments.output, name="MAGD", seed=arguments.seed)
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        generation_metrics(plugin, classifier),
        loggers=[logger],
    )
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=32,
        eval_mb_size=512,
        train_epochs=arguments.epochs,
        device=arguments.device,
        plugins=[plugin],
        evaluator=evaluator,
    )
    start = time.perf_counter()
    metrics: dict[str, float] = {}
    for experience in benchmark.train_stream[: arguments.stop_after]:
        index = experience.current_experience
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream[: index + 1])
        key = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{:03}"
        accuracies = " ".join(f"{metrics[key.format(seen)]:.3f}" for seen in range(index + 1))
        seconds = time.perf_counter() - start
        print(f"after experience {index + 1} ({seconds:.0f} s): {accuracies}", flush=True)
    print(f"final accuracy {metrics[ACCURACY]:.3f}")
    print(f"Report: {write_report(arguments.output)}")


if __name__ == "__main__":
    main()
