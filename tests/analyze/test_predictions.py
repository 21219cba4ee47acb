import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from analyze.seen import drawn, seen_of
from rn50.analyze.predictions import FLIPPED, mean_distribution, predict
from rn50.config import Images, Model
from rn50.data.loader import Loader
from rn50.distributed import Group
from rn50.evaluate import evaluate
from rn50.hardware import Compute
from rn50.model.resnet import build

CPU = torch.device("cpu")
IMAGES = Images(batch_size=8, train_px=32, test_px=32, test_resize_px=40)


def a_net(classes: int, seed: int) -> nn.Module:
    net = build(Model(arch="resnet18", num_classes=classes, zero_init_residual=False), seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        net.fc.weight.mul_(30)  # answers that differ from image to image
    return net.train()


@pytest.fixture(scope="module")
def loader():
    with Loader(CPU, workers=2, prefetch=2) as one:
        yield one


@pytest.mark.parametrize(("classes", "precision"), [(9, "fp32"), (4, "fp32"), (9, "bf16")])
def test_totals_are_those_of_an_evaluation(dataset, loader, classes, precision):
    nets = {"model": a_net(classes, 0), "average": a_net(classes, 1)}
    compute = Compute(device=CPU, precision=precision, workers=2)
    val = dataset.split("val")
    expected = evaluate(nets, val, IMAGES, loader, compute, Group())
    got = predict(nets, val, IMAGES, loader, compute, mirrored="model")
    assert set(got) == {"model", "average", FLIPPED}
    for name, scores in expected.items():
        own = got[name].scores
        assert {"loss": own.loss, "top1": own.top1, "top5": own.top5, "images": own.images} == (
            scores
        )
    assert expected["model"] != expected["average"]
    assert 0 < expected["model"]["top1"] < 1


def test_every_answer_is_that_of_the_softmax(dataset, loader):
    logits, labels = drawn(200, 12)
    seen = seen_of(logits, labels)
    shares = logits.double().softmax(1)
    order = shares.argsort(dim=1, descending=True)
    assert np.array_equal(seen.guesses, order[:, :5])
    assert np.allclose(seen.probabilities, shares.gather(1, order[:, :5]), atol=1e-6)
    assert np.allclose(seen.true_probability, shares.gather(1, labels[:, None])[:, 0], atol=1e-6)
    assert np.array_equal(seen.true_rank, (order == labels[:, None]).int().argmax(1))
    assert np.allclose(seen.losses, F.cross_entropy(logits, labels, reduction="none"), atol=1e-4)
    top1 = multiclass_accuracy(logits, labels, 12, average="micro")
    top5 = multiclass_accuracy(logits, labels, 12, average="micro", top_k=5)
    assert seen.scores.top1 == pytest.approx(float(top1))
    assert seen.scores.top5 == pytest.approx(float(top5))
    assert seen.scores.top1_error == pytest.approx((float(top1 * (1 - top1)) / 200) ** 0.5)


def test_among_equal_scores_the_best_is_one_guess_and_no_class_comes_twice():
    logits = torch.zeros(6, 9)
    logits[1:, 3:] = 1.0
    logits[2, 0] = 2.0
    seen = seen_of(logits, torch.zeros(6, dtype=torch.int64))
    assert np.array_equal(seen.predicted, logits.topk(1, dim=1).indices[:, 0])
    assert all(len(set(guesses)) == 5 for guesses in seen.guesses.tolist())


def test_a_network_that_diverged_is_never_sure():
    logits = torch.full((3, 6), float("nan"))
    seen = seen_of(logits, torch.tensor([0, 1, 2]))
    assert (seen.confidence == 0).all()
    assert np.isfinite(seen.scores.loss)


def test_flipped_answers_are_the_mean_of_both_distributions(dataset, loader):
    net = a_net(9, 0)
    compute = Compute(device=CPU, precision="fp32", workers=2)
    val = dataset.split("val")

    class Mirrored(nn.Module):
        def forward(self, x):
            return net(x.flip(3))

    got = predict(
        {"model": net, "other": Mirrored()}, val, IMAGES, loader, compute, mirrored="model"
    )
    plain, other, flipped = (got[name] for name in ("model", "other", FLIPPED))
    mean = (plain.true_probability + other.true_probability) / 2
    assert np.allclose(flipped.true_probability, mean, atol=1e-6)
    assert not np.allclose(flipped.true_probability, plain.true_probability, atol=1e-3)
    alone = predict({"model": net}, val, IMAGES, loader, compute)
    assert set(alone) == {"model"}
    assert np.array_equal(alone["model"].loss_units, plain.loss_units)


def test_the_mean_of_distributions_is_one():
    one, other = torch.randn(4, 7), 3 * torch.randn(4, 7)
    mean = mean_distribution(one, other).exp()
    assert torch.allclose(mean, (one.softmax(1) + other.softmax(1)) / 2, atol=1e-6)


def test_the_modes_of_networks_are_restored_and_progress_is_told(dataset, loader):
    nets = {"model": a_net(4, 0).train(), "average": a_net(4, 1).eval()}
    before = nets["model"].bn1.running_mean.clone()
    compute = Compute(device=CPU, precision="fp32", workers=2)
    told = []
    predict(
        nets,
        dataset.split("val"),
        IMAGES,
        loader,
        compute,
        report=lambda *counts: told.append(counts),
    )
    assert (nets["model"].training, nets["average"].training) == (True, False)
    assert torch.equal(nets["model"].bn1.running_mean, before)
    assert told[-1] == (36, 36)
