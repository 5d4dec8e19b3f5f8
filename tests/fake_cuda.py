"""A stand-in for `cuda.bindings.runtime`: device memory is host memory, a graph a list of work."""

import ctypes
import enum
import itertools
from types import ModuleType, SimpleNamespace
from typing import Any


class Stream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.recorded: list[Any] | None = None

    def __int__(self) -> int:
        return self.number

    def do(self, work: Any) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)


class FakeCuda(ModuleType):
    """A module `cuda.bindings.runtime` whose device memory is host memory."""

    def __init__(self, arch: tuple[int, int] = (9, 0), driver: int = 13000) -> None:
        super().__init__("cuda.bindings.runtime")
        self.cudaError_t = enum.Enum(
            "cudaError_t", ["cudaSuccess", "cudaErrorNoDevice", "cudaErrorMemoryAllocation"]
        )
        self.cudaMemcpyKind = enum.Enum(
            "cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"]
        )
        self.cudaStreamCaptureMode = enum.Enum(
            "cudaStreamCaptureMode", ["cudaStreamCaptureModeThreadLocal"]
        )
        self.ok = self.cudaError_t.cudaSuccess
        self.arch, self.driver, self.num_devices = arch, driver, 1
        self.blocks: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.stream_numbers = itertools.count(1)
        self.copied_bytes: list[int] = []
        self.graphs = 0
        """Recorded or instantiated, and not destroyed."""
        self.launches = 0

    def memory(self, address: int, size: int) -> Any:
        """Bytes of an allocation; refuses what no allocation holds."""
        assert address in self.blocks, "address of no allocation"
        assert size <= len(self.blocks[address]), "access beyond the allocation"
        return memoryview(self.blocks[address]).cast("B")[:size]

    def cudaGetDeviceCount(self) -> tuple:  # noqa: N802
        if self.num_devices == 0:
            return self.cudaError_t.cudaErrorNoDevice, None
        return self.ok, self.num_devices

    def cudaGetDevice(self) -> tuple:  # noqa: N802
        return self.ok, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple:  # noqa: N802
        major, minor = self.arch
        return self.ok, SimpleNamespace(name=b"Fake GPU\0\0", major=major, minor=minor)

    def cudaDriverGetVersion(self) -> tuple:  # noqa: N802
        return self.ok, self.driver

    def fail(self, name: str, after: int = 0) -> None:
        """Let a function fail after some calls that work."""
        works, calls = getattr(self, name), itertools.count()
        failed = (self.cudaError_t.cudaErrorMemoryAllocation, None)

        def call(*arguments: Any) -> tuple:
            if next(calls) < after:
                return works(*arguments)
            if name == "cudaStreamEndCapture":  # the recording is over all the same
                arguments[0].recorded = None
            return failed

        setattr(self, name, call)

    @property
    def is_clean(self) -> bool:
        """Whether everything was given back."""
        return not (self.blocks or self.streams or self.graphs)

    def cudaMalloc(self, size: int) -> tuple:  # noqa: N802
        block = (ctypes.c_uint8 * size)(*[255] * min(size, 64))  # not zeros, as on a device
        self.blocks[ctypes.addressof(block)] = block
        return self.ok, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaFree(self, address: int) -> tuple:  # noqa: N802
        del self.blocks[address]
        return (self.ok,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemset(self, address: int, value: int, size: int) -> tuple:  # noqa: N802
        self.memory(address, size)[:] = bytes([value]) * size
        return (self.ok,)

    def cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, size: int, kind: Any, stream: Stream
    ) -> tuple:
        def copy() -> None:
            self.copied_bytes.append(size)
            self.memory(to, size)[:] = self.memory(source, size)

        stream.do(copy)
        return (self.ok,)

    def cudaStreamCreate(self) -> tuple:  # noqa: N802
        stream = Stream(next(self.stream_numbers))
        self.streams[stream.number] = stream
        return self.ok, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple:  # noqa: N802
        assert stream.recorded is None, "destroyed while recording"
        del self.streams[stream.number]
        return (self.ok,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple:  # noqa: N802
        assert stream.recorded is None, "synchronised while recording"
        return (self.ok,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple:  # noqa: N802
        stream.recorded = []
        return (self.ok,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple:  # noqa: N802
        recorded, stream.recorded = stream.recorded, None
        self.graphs += 1
        return self.ok, recorded

    def cudaGraphInstantiate(self, graph: list, flags: int) -> tuple:  # noqa: N802
        self.graphs += 1
        return self.ok, graph

    def cudaGraphDestroy(self, graph: list) -> tuple:  # noqa: N802
        self.graphs -= 1
        return (self.ok,)

    cudaGraphExecDestroy = cudaGraphDestroy  # noqa: N815

    def cudaGraphLaunch(self, graph: list, stream: Stream) -> tuple:  # noqa: N802
        self.launches += 1
        for work in graph:
            work()
        return (self.ok,)
