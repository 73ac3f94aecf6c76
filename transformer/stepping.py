"""A step of decoding in its quick forms: by a compiler, and on a GPU as one CUDA graph.

Each is called once a token. A step changes tensors in place and nothing else, so that from some call on what it does
need not be looked at any more.
"""

import threading
from collections.abc import Callable
from typing import ClassVar

import torch
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

COMPILED_STEPS = 64  # for so many kinds of prior, batch and settings at once; PyTorch's own limit is 8
STEPS_BEFORE_CAPTURE = 3
_ONE_AT_A_TIME = threading.RLock()  # of a process: a stance is that of all threads, other calls need guards


class CompiledStep:
    """The first call may compile. Raises ValueError where that is not possible here.

    To ask whether what it was compiled for is still so would take half a millisecond: it is not asked as long as no
    other such step of this process comes between.
    """

    _latest: ClassVar[object] = None  # stands for the one that was called last

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step
        self._mark = object()

    def __call__(self) -> None:
        with _ONE_AT_A_TIME:
            if CompiledStep._latest is self._mark:
                with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                    self.step()
            else:
                CompiledStep._latest = self._mark
                self._guarded()

    def _guarded(self) -> None:
        with torch._dynamo.config.patch(recompile_limit=COMPILED_STEPS):
            try:
                self.step()
            except FailOnRecompileLimitHit:
                torch.compiler.reset()  # rather all of them anew, as they are asked for, than none any more
                self.step()
            except BackendCompilerFailed as error:
                raise ValueError(f"decoding cannot be compiled here: {str(error).splitlines()[0]}") from error


class CapturedStep:
    """The first calls on a stream of their own, as captures want to be preceded; then one CUDA graph.

    Args:
        device: of the step's tensors, a CUDA device.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.device = step, device
        self._stream = torch.cuda.Stream(device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        with torch.cuda.device(self.device):  # whichever is the current one
            if self._calls < STEPS_BEFORE_CAPTURE:
                self._on_own_stream()
            else:
                self._graph = self._graph or self._capture()
                self._graph.replay()
        self._calls += 1

    def _on_own_stream(self) -> None:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self.step()
        current.wait_stream(self._stream)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # In other modes, memory that another thread pins meanwhile, as loaders do, would end the capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self.step()
        return graph
