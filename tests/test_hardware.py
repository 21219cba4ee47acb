import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from rn50 import config, hardware
from rn50.cli import main
from rn50.config import Hardware
from rn50.data.plan import TrainPlan
from rn50.errors import UsageError
from rn50.model import resnet
from rn50.profiles import PROFILES, nearest
from rn50.recipes import RECIPES
from rn50.train import loss, optim
from rn50.train.schedule import Timeline

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that this machine has one GPU of a name and a compute capability."""

    def pretend(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    benchmark = torch.backends.cudnn.benchmark
    precisions = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in precisions]
    yield pretend
    torch.backends.cudnn.benchmark = benchmark
    for backend, precision in zip(precisions, before, strict=True):
        backend.fp32_precision = precision


@pytest.mark.parametrize(
    ("name", "capability", "profile", "precision"),
    [
        ("Tesla P100", (6, 0), "p3", "fp16"),
        ("Tesla V100-SXM2-16GB", (7, 0), "p3", "fp16"),
        ("Tesla T4", (7, 5), "t4", "fp16"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), "p4d", "bf16"),
        ("NVIDIA A10G", (8, 6), "g5", "bf16"),
        ("NVIDIA L4", (8, 9), "g5", "bf16"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "h100", "bf16"),
        ("NVIDIA B200", (10, 0), "h100", "bf16"),
    ],
)
def test_auto_takes_the_profile_of_the_gpu_and_bf16_from_capability_8_on(
    gpu, name, capability, profile, precision
):
    gpu(name, capability)
    compute = hardware.resolve(Hardware())
    assert compute.device == torch.device("cuda", 0)
    assert (compute.profile, compute.precision) == (profile, precision)
    assert compute.prefetch_batches == PROFILES[profile].prefetch_batches
    assert compute.why == f"{name}, compute capability {capability[0]}.{capability[1]}"
    assert compute.note == ""


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        (Hardware(precision="bf16"), "use --precision fp16"),
        (Hardware(profile="p4d"), "use --profile auto"),
        (Hardware(profile="h100"), "use --profile auto"),
    ],
)
def test_bf16_that_a_gpu_only_emulates_is_refused(gpu, capability, asked, remedy):
    gpu("Tesla T4", capability)
    with pytest.raises(UsageError, match=f"Tesla T4 only emulates.*needs 8.0 or above; {remedy}"):
        hardware.resolve(asked)


def test_a_profile_of_another_gpu_is_taken_with_a_note(gpu):
    gpu("NVIDIA A100-SXM4-40GB", (8, 0))
    compute = hardware.resolve(Hardware(profile="t4"))
    assert (compute.profile, compute.precision) == ("t4", "fp16")
    assert compute.note == (
        "profile t4 as asked; for this device (NVIDIA A100-SXM4-40GB, compute capability 8.0) "
        "auto takes p4d"
    )
    assert hardware.resolve(Hardware(profile="p4d")).note == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("profile", [p.name for p in PROFILES.values() if p.capability])
def test_a_gpu_s_profile_without_a_gpu_is_refused(profile):
    with pytest.raises(UsageError, match=f"{profile} is for NVIDIA .* no CUDA GPU; use --profile"):
        hardware.resolve(Hardware(profile=profile))
    with pytest.raises(UsageError, match="but the device is cpu; use --profile local or auto"):
        hardware.resolve(Hardware(profile=profile, device="cpu"))


def test_local_takes_no_cuda_gpu(gpu):
    gpu("Tesla T4", (7, 5))
    assert hardware.resolve(Hardware(profile="local")).device.type in ("cpu", "mps")
    with pytest.raises(UsageError, match="but the device is cuda; use --profile t4 or auto"):
        hardware.resolve(Hardware(profile="local", device="cuda"))


@pytest.mark.parametrize("profile", ["auto", "t4", "p4d", "h100"])
def test_what_the_user_sets_wins_over_every_profile(gpu, profile):
    gpu("NVIDIA H100 80GB HBM3", (9, 0))
    asked = Hardware(
        profile=profile,
        precision="fp32",
        micro_batch=48,
        workers=3,
        prefetch_batches=5,
        compile=True,
    )
    compute = hardware.resolve(asked)
    assert compute.precision == "fp32"
    assert (compute.micro_batch, compute.workers, compute.prefetch_batches) == (48, 3, 5)
    assert compute.compile
    assert not hardware.resolve(dataclasses.replace(asked, compile=False)).compile


def test_no_profile_reads_less_ahead_than_a_third_of_a_second():
    for profile in PROFILES.values():
        ahead_s = profile.prefetch_batches * 128 / (profile.images_per_second or 1)
        assert ahead_s >= 0.3
        assert profile.prefetch_batches == 2 or ahead_s - 128 / profile.images_per_second < 0.3


def test_each_profile_is_the_nearest_to_its_own_gpu():
    assert [nearest(p.capability).name for p in PROFILES.values()] == list(PROFILES)
    assert nearest(None).name == "local"


def test_no_profile_reaches_the_mathematics_of_a_recipe():
    assert "hardware" not in config.MATHEMATICS
    for make in RECIPES.values():
        run = make()
        for profile in ("auto", *PROFILES):
            settings = dataclasses.replace(run.hardware, profile=profile)
            there = dataclasses.replace(run, hardware=settings)
            assert config.mathematics(there) == config.mathematics(run)


class Untouchable:
    """Settings that must not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"hardware.{name} was read")


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_trained_is_decided_without_a_look_at_the_hardware(name):
    run = RECIPES[name]()
    object.__setattr__(run, "hardware", Untouchable())
    count = 4 * run.images.batch_size
    plan = TrainPlan(
        images=run.images,
        seed=run.seed,
        widths=np.full(count, 50),
        heights=np.full(count, 40),
        augment=run.augment,
        mix=run.mix,
    )
    timeline = Timeline(run, plan.steps_per_epoch)
    for step in range(0, timeline.total_steps, max(1, timeline.total_steps // 7)):
        timeline.at(step)
        plan.request(step)
    model = resnet.build(run.model, seed=run.seed)
    loss.init_bias(model, run.loss)
    optim.build(model, run.optim)
    with pytest.raises(AssertionError, match="precision was read"):
        _ = run.hardware.precision


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_full_memory_is_known_by_its_type_or_its_text(error, is_full):
    assert hardware.is_out_of_memory(error) is is_full


def test_the_profiles_are_listed_with_what_is_chosen_here_and_why(capsys):
    main(["hardware", "--device", "cpu", "--precision", "fp32", "--compile"])
    told = capsys.readouterr().out
    for name, profile in PROFILES.items():
        assert name in told
        assert profile.machine in told
    assert f"here: local ({hardware.describe(CPU)}): cpu in fp32" in told
    assert ", compiled, micro-batch predicted" in told
    main(["hardware", "--device", "cpu", "--micro-batch", "6", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["profiles"]) == list(PROFILES)
    assert found["profiles"]["t4"]["precision"] == "fp16"
    assert found["here"]["profile"] == "local"
    assert (found["here"]["device"], found["here"]["micro_batch"]) == ("cpu", 6)


def test_compile_is_a_flag_of_its_own(capsys):
    said = {}
    for words in ((), ("--compile",), ("--no-compile",)):
        main(["train", *words, "--dry-run"])
        said[words] = json.loads(capsys.readouterr().out)["hardware"]["compile"]
    assert said == {(): None, ("--compile",): True, ("--no-compile",): False}


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
