"""What a GPU is and how fast it copies, by the CUDA driver alone: no toolkit, no framework.

    python3 benches/gpu/driver.py

prints JSON: the name, the driver's CUDA version, memory, multiprocessors, and the rate of copies within the device's
memory, counted in both directions, as the median of 20 copies of 1 GiB timed by events.
"""

import ctypes
import json
import statistics

GIB = 1 << 30


class Failure(Exception):
    """The driver refuses."""


class Driver:
    """libcuda."""

    def __init__(self):
        """Loads and starts it."""
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Failure(f"there is no CUDA driver: {error}") from error
        self.call("cuInit", 0)

    def call(self, name, *arguments):
        """Calls a function."""
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise Failure(f"{name} gives {code}")

    def attribute(self, device, number):
        """A property of a device."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def about(self, device):
        """What the device is."""
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self.call("cuDeviceGetName", name, 256, device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return {
            "name": name.value.decode(),
            "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "compute_capability": f"{self.attribute(device, 75)}.{self.attribute(device, 76)}",
            "multiprocessors": self.attribute(device, 16),
            "l2_mib": self.attribute(device, 38) / (1 << 20),
            "clock_mhz": self.attribute(device, 13) / 1000,
            "free_gib": free.value / GIB,
            "total_gib": total.value / GIB,
        }

    def copy_rate(self, size=GIB, repeat=20):
        """Bytes per second, read and written."""
        places = [ctypes.c_uint64(), ctypes.c_uint64()]
        for place in places:
            self.call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(size))
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self.call("cuEventCreate", ctypes.byref(event), 0)
        rates = []
        for _ in range(repeat + 3):
            self.call("cuEventRecord", events[0], None)
            self.call("cuMemcpyDtoDAsync_v2", places[1], places[0], ctypes.c_size_t(size), None)
            self.call("cuEventRecord", events[1], None)
            self.call("cuEventSynchronize", events[1])
            ms = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(ms), *events)
            rates.append(2 * size / (ms.value * 1e-3))
        for place in places:
            self.call("cuMemFree_v2", place)
        return statistics.median(rates[3:])


def probe():
    """All of it."""
    driver = Driver()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    driver.call("cuDeviceGet", ctypes.byref(device), 0)
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    driver.call("cuCtxSetCurrent", context)
    return driver.about(device) | {"copy_bytes_per_second": driver.copy_rate()}


if __name__ == "__main__":
    print(json.dumps(probe(), indent=2))
