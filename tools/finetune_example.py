"""Prune a torch network through its ONNX file, shrink the module by the plan, fine-tune it, export it again.

    python tools/finetune_example.py DATA WORK --epochs 2 --rate 0.02

DATA is the folder with the four `*-ubyte.gz` files of Fashion-MNIST (Debian: `dataset-fashion-mnist`), WORK takes what
is written. The network is that of `train_fashion.py`; its trained weights are in `models/fashion_resnet_bn.onnx`, under
torch's names. Needs torch. Prints the top-1 accuracy of every step as one line.

Starts: `sliced` are the dense weights without what the plan removes, `refitted` the weights that onnxprune wrote (it
refits them unless --fast), `untrained` fresh ones of the same architecture, sliced by the same plan.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn
from train_fashion import FashionResNet, augment, export, read

import onnxprune

DENSE = Path(__file__).parents[1] / "models" / "fashion_resnet_bn.onnx"
BATCH = 128
HARDNESS = 4.0
"""Temperature of the dense network's answers."""

State = dict[str, np.ndarray]
Data = tuple[torch.Tensor, torch.Tensor]


def untied(path: Path) -> onnx.ModelProto:
    """The model with a weight of its own for each of torch's names: the exporter lets equal vectors be one behind an
    Identity, and they need not stay equal."""
    model = onnx.load(path)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Identity" and n.input[0] in held]:
        model.graph.initializer.append(numpy_helper.from_array(held[node.input[0]], node.output[0]))
        model.graph.node.remove(node)
    return model


def initializers(model: onnx.ModelProto, network: nn.Module) -> State:
    """The model's weights for all of the module's names; what only torch has (counters) as the module has it."""
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: held.get(name, tensor.numpy()) for name, tensor in network.state_dict().items()}


def accuracy(network: nn.Module, data: Data) -> float:
    network.eval()
    with torch.no_grad():
        hits = [network(x).argmax(1) == y for x, y in zip(data[0].split(500), data[1].split(500), strict=True)]
    return 100 * torch.cat(hits).float().mean().item()


def onnx_logits(path: Path, images: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": x.numpy()})[0] for x in images.split(500)])


def onnx_accuracy(path: Path, data: Data) -> float:
    return 100 * float((onnx_logits(path, data[0]).argmax(1) == data[1].numpy()).mean())


def tune(
    network: nn.Module, teacher: nn.Module | None, train: Data, epochs: int, rate: float, half: float = 0.5
) -> None:
    """SGD with one cycle of the learning rate; with `teacher`, half of the loss is the distance to its answers."""
    images, labels = train
    optimiser = torch.optim.SGD(network.parameters(), rate / 10, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for rows in torch.randperm(len(images))[: len(images) // BATCH * BATCH].view(-1, BATCH):
            x = augment(images[rows])
            answers = network(x)
            loss = F.cross_entropy(answers, labels[rows], label_smoothing=0.05)
            if teacher is not None:
                with torch.no_grad():
                    wanted = F.log_softmax(teacher(x) / HARDNESS, 1)
                distance = F.kl_div(
                    F.log_softmax(answers / HARDNESS, 1), wanted, reduction="batchmean", log_target=True
                )
                loss = (1 - half) * loss + half * HARDNESS**2 * distance
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}: loss {total / (len(images) // BATCH):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs that goes")
    parser.add_argument("--fast", action="store_true", help="choose what goes by weights alone")
    parser.add_argument("--start", nargs="+", choices=("sliced", "refitted", "untrained"), default=["refitted"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.02, help="peak of the learning rate (untrained: 0.2)")
    parser.add_argument("--distil", action="store_true", help="learn from the dense network's answers, too")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    train, test = (tuple(map(torch.from_numpy, read(args.data, part))) for part in ("train", "t10k"))

    dense, source = FashionResNet(), untied(DENSE)
    weights = initializers(source, dense)
    onnxprune.shrink(dense, weights)
    print(f"dense: {accuracy(dense, test):.2f}", flush=True)

    result = onnxprune.prune(source, ratio=args.ratio, of="macs", fast=args.fast)
    pruned = args.work / "pruned.onnx"
    result.model.save(pruned)
    before, after = result.report.before, result.report.after
    print(f"pruned: {onnx_accuracy(pruned, test):.2f} with {100 * after.macs / before.macs:.1f} % of the MACs and "
          f"{100 * after.parameters / before.parameters:.1f} % of the parameters", flush=True)  # fmt: skip

    plan = onnxprune.renamed(result.plan, weights, source)  # under torch's names: good for untrained weights, too
    masked = args.work / "sliced.onnx"
    onnxprune.apply(source, result.plan).save(masked)
    fresh = {name: tensor.numpy() for name, tensor in FashionResNet().state_dict().items()}
    for start in args.start:
        rate = 0.2 if start == "untrained" else args.rate
        state = onnxprune.sliced(plan, fresh if start == "untrained" else weights)
        if start == "refitted":
            state = initializers(onnx.load(pruned), onnxprune.shrink(FashionResNet(), state))
        network = onnxprune.shrink(FashionResNet(), state).to(memory_format=torch.channels_last)
        print(f"{start}, shrunk module: {accuracy(network, test):.2f}", flush=True)
        if start != "untrained":
            with torch.no_grad():
                ours = network.eval()(test[0][:500]).numpy()
            error = abs(ours - onnx_logits(pruned if start == "refitted" else masked, test[0][:500])).max()
            print(f"  largest difference to the pruned ONNX file: {error:.1e} of {abs(ours).max():.1f}", flush=True)
            assert error < 1e-4 * abs(ours).max(), "the shrunk module is not the pruned file"
        tune(network, dense.eval() if args.distil else None, train, args.epochs, rate)
        out = args.work / f"{start}.onnx"
        export(network.to(memory_format=torch.contiguous_format), out, keep_bn=False)
        print(f"{start}, fine-tuned: {accuracy(network, test):.2f}; exported, in ONNX Runtime: "
              f"{onnx_accuracy(out, test):.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
