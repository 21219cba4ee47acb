"""``rn50`` with a network without BatchNorm, which trains alike however a batch is split."""

from torch import nn

from rn50.cli import main
from rn50.config import Run
from rn50.distributed import Group
from rn50.hardware import Compute
from rn50.model import resnet
from rn50.train import state as states


def _without_batch_norm(run: Run, compute: Compute, group: Group) -> states.TrainState:
    net = resnet.build(run.model, seed=run.seed)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    for parameter in net.parameters():
        parameter.data *= 0.5
    return states.of_model(net, run, compute, group)


states.new = _without_batch_norm
main()
