"""Fine-tune a small vision backbone on scikit-learn's handwritten digits, and plot the accuracy.

    python -m demos.scripts.finetune_digits --model litv2_s --out digits

The model first learns the digits 0 to 4. Its weights go to a .safetensors file; from there a model with a
new head is fine-tuned on the digits 5 to 9, beside one that starts from random weights. Takes under two
minutes on two CPU cores (not with nat_mini, whose attention is slow on CPUs), without downloads. Writes
accuracy.png and accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from vidattn.backbones import create_model

SMALL: dict[str, dict[str, Any]] = {
    "nat_mini": {"embed_dim": 16, "depths": (1, 1, 2, 1), "heads": 1, "kernel_size": 3},
    "biformer_tiny": {
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "head_dim": 8,
        "n_regions": 2,
        "topk": (2, 2, 2, 0),
    },
    "mavit_t": {
        "widths": (16, 32, 64, 64),
        "depths": (1, 1, 2, 1),
        "heads": (1, 2, 4, 4),
        "projection": 128,
    },
    "litv2_s": {"embed_dim": 16, "depths": (1, 1, 2, 1), "heads": 1},
}
"""Small configurations of published models: the images have 32 x 32 pixels."""


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 32, 32), zero mean, and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(images, scale_factor=4, mode="bilinear")
    return (images - images.mean()) / images.std(), torch.from_numpy(data.target).long()


def halves(images: Tensor, labels: Tensor, first: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test images of five digits from ``first`` on, labels from 0; every fourth is a test."""
    chosen = (labels >= first) & (labels < first + 5)
    images, labels = images[chosen], labels[chosen] - first
    test = torch.arange(len(labels)) % 4 == 0
    return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that the model names right."""
    model.eval()
    return float((model(images).argmax(-1) == labels).float().mean())


def train(model: nn.Module, data: dict[str, tuple[Tensor, Tensor]], epochs: int, rate: float) -> list[float]:
    """Test accuracy before training and after each epoch."""
    images, labels = data["train"]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    batches = -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * batches)
    curve = [accuracy(model, *data["test"])]
    for _ in tqdm(range(epochs), unit="epoch", leave=False):
        model.train()
        for batch in torch.randperm(len(labels)).chunk(batches):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        curve.append(accuracy(model, *data["test"]))
    return curve


def plot(curves: dict[str, list[float]], title: str, path: Path) -> None:
    """Accuracy over epochs, one line for each curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for label, curve in curves.items():
        axes.plot(range(len(curve)), [100 * value for value in curve], marker="o", markersize=3, label=label)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title=title, ylim=(0, 101))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the example; returns what accuracy.json says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SMALL, default="litv2_s")
    parser.add_argument("--epochs", type=int, default=5, help="of each of the three trainings")
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder for the results")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start, data = time.perf_counter(), digits()
    settings = {"in_chans": 1, "num_classes": 5, "drop_path_rate": 0.0, **SMALL[chosen.model]}
    model = create_model(chosen.model, **settings)
    first = train(model, halves(*data, first=0), chosen.epochs, 3e-3)
    weights = chosen.out / "first.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    tuned = create_model(chosen.model, weights, **settings)
    tuned.reset_classifier(5)
    fresh = create_model(chosen.model, **settings)
    second = halves(*data, first=5)
    curves = {
        "fine-tuned": train(tuned, second, chosen.epochs, 3e-3),
        "from random weights": train(fresh, second, chosen.epochs, 3e-3),
    }
    plot(curves, f"{chosen.model} (small) on the digits 5 to 9", chosen.out / "accuracy.png")
    result = {
        "model": chosen.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "digits 0 to 4": first,
        **curves,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (chosen.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
