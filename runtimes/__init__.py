"""Where a network runs when it is done: a file of it for a runtime, made, run and timed there.

A runtime is a class with four methods (`Runtime`), known by its name in `RUNTIMES` or as `package.module:callable`.
"""

from .compile import Compile as Compile
from .eager import Eager as Eager
from .onnxruntime import OnnxRuntime as OnnxRuntime
from .openvino import OpenVino as OpenVino
from .program import Program as Program
from .registry import RUNTIMES as RUNTIMES
from .runtime import Runtime as Runtime
from .timing import Run as Run
