import os

import pytest
import torch

from rn50 import hardware
from rn50.config import Hardware
from rn50.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="torch finds no CUDA GPU; use --device auto"):
        hardware.resolve(Hardware(device="cuda"))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_mps_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="torch finds no Apple GPU; use --device auto"):
        hardware.resolve(Hardware(device="mps"))


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UsageError, match="fp16, which a CPU does not train in; use bf16 or fp32"):
        hardware.resolve(Hardware(device="cpu", precision="fp16"))


def test_auto_takes_the_best_device_there_is():
    expected = "cpu"
    if torch.cuda.is_available():
        expected = "cuda"
    elif torch.backends.mps.is_available():
        expected = "mps"
    assert hardware.device_type(Hardware()) == expected
    assert hardware.device_type(Hardware(device="mps")) == "mps"


def test_the_precision_of_a_cpu_is_bf16_only_where_it_computes_it():
    compute = hardware.resolve(Hardware(device="cpu"))
    expected = "bf16" if hardware.has_native_bf16(CPU) else "fp32"
    assert (compute.device, compute.precision) == (CPU, expected)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_only_fp16_scales_the_loss(precision, dtype):
    compute = hardware.Compute(device=CPU, precision=precision, workers=1)
    assert compute.autocast_dtype == dtype
    assert compute.scales_loss == (precision == "fp16")


def test_the_processes_of_a_machine_share_its_cores():
    cores = hardware.available_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    for processes in (1, 2, 3, 1000):
        compute = hardware.resolve(Hardware(device="cpu"), local_world_size=processes)
        assert compute.workers == max(1, cores // processes)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_only_the_cores_that_the_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert hardware.resolve(Hardware(device="cpu")).workers == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_workers_that_are_asked_for_are_taken_as_they_are():
    compute = hardware.resolve(Hardware(device="cpu", workers=7), local_world_size=4)
    assert compute.workers == 7


def test_deterministic_kernels_are_switched_on_where_asked():
    variable = "CUBLAS_WORKSPACE_CONFIG"
    before = os.environ.get(variable)
    try:
        hardware.resolve(Hardware(device="cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        hardware.resolve(Hardware(device="cpu", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[variable] in (":4096:8", before)
    finally:
        torch.use_deterministic_algorithms(False)
        if before is None:
            os.environ.pop(variable, None)


def test_a_cpu_is_described_by_its_name_and_cores():
    assert hardware.describe(CPU).endswith(f", {hardware.available_cores()} cores")
