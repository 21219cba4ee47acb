"""Train torchvision's ResNet-50 in the plain style of torchvision's reference script.

The peer for ``rn50 train``: PIL transforms in ``ImageFolder``, worker processes in ``DataLoader``,
``torch.optim.SGD`` on all parameters, the schedule stepped per update, autocast, and an evaluation
of the whole validation split. Settings are those of the rn50 run it is compared with.

    python benchmarks/reference_epoch.py PACKED --px 64 --batch-size 128 --lr 0.1 --epochs 1

PACKED is a folder made by ``rn50 prepare``; its shards are extracted with tar into class folders.
"""

import argparse
import json
import tarfile
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder


def _extract(packed: Path, split: str, folder: Path) -> Path:
    target = folder / split
    for shard in sorted(packed.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(target, filter="data")
    return target


def main() -> None:
    """Train, evaluate and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--resize-px", type=int, default=64)
    parser.add_argument("--crop-area", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--warmup-epochs", type=float, default=0.2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=0)
    parser.add_argument("--fp32", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    train_transform = T.Compose(
        [
            T.RandomResizedCrop(args.px, scale=(args.crop_area, 1.0)),
            T.RandomHorizontalFlip(),
            T.PILToTensor(),
            T.ConvertImageDtype(torch.float),
            normalise,
        ]
    )
    test_transform = T.Compose(
        [
            T.Resize(args.resize_px),
            T.CenterCrop(args.px),
            T.PILToTensor(),
            T.ConvertImageDtype(torch.float),
            normalise,
        ]
    )
    with tempfile.TemporaryDirectory() as scratch:
        train_set = ImageFolder(str(_extract(args.packed, "train", Path(scratch))), train_transform)
        val_set = ImageFolder(str(_extract(args.packed, "val", Path(scratch))), test_transform)
        common = {"num_workers": args.workers, "pin_memory": device.type == "cuda"}
        train_loader = DataLoader(
            train_set, args.batch_size, shuffle=True, drop_last=True, **common
        )
        val_loader = DataLoader(val_set, args.batch_size, **common)

        net = torchvision.models.resnet50(num_classes=len(train_set.classes))
        net = net.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            net.parameters(),
            lr=args.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=args.weight_decay,
        )
        steps = len(train_loader)
        warmup = round(args.warmup_epochs * steps)
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * steps - warmup),
            ],
            [warmup],
        )
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

        start, done = time.perf_counter(), 0
        for _ in range(args.epochs):
            net.train()
            for images, labels in train_loader:
                images = images.to(device, non_blocking=True)
                labels = labels.to(device, non_blocking=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=not args.fp32):
                    loss = criterion(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
                if done % 50 == 0:
                    rate = done * args.batch_size / (time.perf_counter() - start)
                    print(f"step {done}: loss {loss.item():.3f}, {rate:.1f} img/s", flush=True)
                if done == args.max_steps:
                    break
            if done == args.max_steps:
                break
        seconds = time.perf_counter() - start

        net.eval()
        hits = torch.zeros(2, dtype=torch.int64)
        with torch.no_grad():
            for images, labels in val_loader:
                with torch.autocast(device.type, torch.bfloat16, enabled=not args.fp32):
                    guesses = net(images.to(device)).topk(5, dim=1).indices.cpu()
                match = guesses == labels[:, None]
                hits += torch.stack([match[:, 0].sum(), match.any(dim=1).sum()])
    print(
        json.dumps(
            {
                "steps": done,
                "seconds": round(seconds, 1),
                "images_per_second": round(done * args.batch_size / seconds, 1),
                "loss": round(loss.item(), 4),
                "top1": hits[0].item() / len(val_set),
                "top5": hits[1].item() / len(val_set),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
