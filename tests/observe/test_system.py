import importlib
import sys
import threading
import time
from types import SimpleNamespace

import pynvml
import pytest

from rn50.observe.system import Gpus

GIB = 2**30


class Nvml:
    """Answers like the library on a machine with GPUs, each by its UUID."""

    def __init__(self, **gpus):
        self.gpus = gpus
        self.running = 0
        self.asked = []
        self.fails = {}
        for name in dir(pynvml):
            if name.startswith(("NVMLError", "NVML_", "nvmlClocksEventReason")):
                setattr(self, name, getattr(pynvml, name))

    def nvmlInit(self):  # noqa: N802
        self._may_fail("Init")
        self.running += 1

    def nvmlShutdown(self):  # noqa: N802
        self.running -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid not in self.gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def __getattr__(self, name):
        what = name.removeprefix("nvmlDeviceGet")
        if what == name:
            raise AttributeError(name)

        def answer(handle, *_):
            self.asked.append(what)
            self._may_fail(what)
            return self.gpus[handle][what]

        return answer

    def _may_fail(self, what):
        if what in self.fails:
            raise pynvml.NVMLError(self.fails[what])


def gpu(*, utilisation=80, used=10 * GIB, watts=200.0, mhz=1400, reasons=0):
    return {
        "UtilizationRates": SimpleNamespace(gpu=utilisation, memory=10),
        "MemoryInfo": SimpleNamespace(used=used, total=16 * GIB, free=0),
        "PowerUsage": int(watts * 1000),
        "ClockInfo": mhz,
        "CurrentClocksEventReasons": reasons,
        "CurrentClocksThrottleReasons": reasons,
    }


@pytest.fixture
def put(monkeypatch):
    return lambda nvml: monkeypatch.setitem(sys.modules, "pynvml", nvml) or nvml


def eventually(question):
    deadline = time.monotonic() + 20
    while not (answer := question()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return answer


def sampled(nvml, *names, samples=3):
    before = len(nvml.asked)
    gpus = Gpus(lambda: names, interval_s=0.001)
    try:
        eventually(lambda: len(nvml.asked) - before > 5 * samples * len(names))
        return gpus.take(), gpus.news()
    finally:
        gpus.close()


def test_a_window_is_the_mean_over_samples_and_gpus_with_memory_of_the_fullest(put):
    nvml = put(
        Nvml(**{"GPU-a": gpu(), "GPU-b": gpu(utilisation=40, used=12 * GIB, watts=100, mhz=900)})
    )
    values, news = sampled(nvml, "a", "b")
    assert values == {
        "gpu_utilisation": 0.6,
        "gpu_memory": 12 * GIB,
        "gpu_memory_total": 16 * GIB,
        "gpu_power_w": 300.0,
        "gpu_clock_mhz": 900.0,
    }
    assert news == []
    assert nvml.running == 0, "the library was not let go"


def test_only_the_gpus_that_are_named_are_sampled(put):
    nvml = put(Nvml(**{"GPU-a": gpu(utilisation=0), "GPU-b": gpu(utilisation=90)}))
    assert sampled(nvml, "b")[0]["gpu_utilisation"] == 0.9


def test_each_window_begins_anew_and_without_a_sample_tells_nothing(put):
    nvml = put(Nvml(**{"GPU-a": gpu()}))
    gpus = Gpus(lambda: ["a"], interval_s=0.001)
    eventually(gpus.take)
    nvml.gpus["GPU-a"] |= gpu(utilisation=10)
    time.sleep(0.05)
    gpus.take()
    assert eventually(gpus.take)["gpu_utilisation"] == 0.1
    gpus.close()
    gpus.take()
    assert gpus.take() == {}


def test_what_held_a_clock_down_is_told_by_its_share_of_the_samples(put):
    bits = pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksEventReasonSwPowerCap
    assert sampled(put(Nvml(**{"GPU-a": gpu(reasons=bits)})), "a")[0]["gpu_throttled"] == {
        "heat": 1.0,
        "power limit": 1.0,
    }
    idle = pynvml.nvmlClocksEventReasonGpuIdle
    assert "gpu_throttled" not in sampled(put(Nvml(**{"GPU-a": gpu(reasons=idle)})), "a")[0]


def test_an_older_driver_is_asked_by_the_older_name(put):
    nvml = Nvml(**{"GPU-a": gpu(reasons=pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown)})
    nvml.fails["CurrentClocksEventReasons"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert sampled(put(nvml), "a")[0]["gpu_throttled"] == {"power brake": 1.0}


def test_what_a_gpu_does_not_tell_is_left_out_and_asked_only_once(put):
    nvml = Nvml(**{"MIG-a": gpu()})
    nvml.fails = {"UtilizationRates": pynvml.NVML_ERROR_NOT_SUPPORTED}
    values, news = sampled(put(nvml), "a")
    assert values["gpu_memory"] == 10 * GIB
    assert "gpu_utilisation" not in values
    assert nvml.asked.count("UtilizationRates") == 1
    assert news == []


@pytest.mark.parametrize("missing", ["library", "driver", "gpu", "everything"])
def test_where_nothing_is_told_that_is_said_once_and_is_no_error(put, missing, monkeypatch):
    nvml = put(Nvml(**{"GPU-a": gpu()}))
    if missing == "library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif missing == "driver":
        nvml.fails["Init"] = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    elif missing == "everything":
        nvml.fails = dict.fromkeys(gpu(), pynvml.NVML_ERROR_NOT_SUPPORTED)
    gpus = Gpus(lambda: ["other" if missing == "gpu" else "a"], interval_s=0.001)
    (message,) = eventually(gpus.news)
    assert message.startswith("the GPU's utilisation, memory and power are not shown from here on")
    assert "\n" not in message
    gpus.close()
    assert gpus.news() == []
    assert gpus.take() == {}
    assert nvml.running == 0


def test_a_gpu_that_is_lost_in_the_middle_ends_the_sampling_with_a_word(put):
    nvml = put(Nvml(**{"GPU-a": gpu()}))
    gpus = Gpus(lambda: ["a"], interval_s=0.001)
    eventually(gpus.take)
    nvml.fails["PowerUsage"] = pynvml.NVML_ERROR_GPU_IS_LOST
    (message,) = eventually(gpus.news)
    assert "GPU is lost" in message
    gpus.close()
    assert nvml.running == 0


def test_a_driver_that_hangs_does_not_hold_the_run(put, monkeypatch):
    nvml = put(Nvml(**{"GPU-a": gpu()}))
    let_go = threading.Event()
    nvml.nvmlInit = let_go.wait
    gpus = Gpus(lambda: ["a"], interval_s=0.001)
    monkeypatch.setattr(gpus._thread, "join", lambda limit: None)
    assert gpus.take() == {}
    gpus.close()
    let_go.set()


def test_a_torch_that_does_not_tell_its_gpus_is_no_error(put):
    put(Nvml(**{"GPU-a": gpu()}))
    gpus = Gpus(lambda: [object().uuid], interval_s=0.001)
    assert "has no attribute 'uuid'" in eventually(gpus.news)[0]
    gpus.close()


def test_without_a_driver_the_real_library_is_no_error_either():
    real = importlib.import_module("pynvml")
    try:
        real.nvmlInit()
    except real.NVMLError:
        gpus = Gpus(lambda: ["a"], interval_s=0.001)
        assert len(eventually(gpus.news)) == 1
        gpus.close()
    else:
        real.nvmlShutdown()
        pytest.skip("this machine has a driver")
