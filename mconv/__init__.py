"""mconv: convert, quantize and validate checkpoints of open-weight models.

    import mconv

    mconv.run(mconv.plan("Mistral-7B-v0.3", "gguf", "mistral-7b.gguf"))
    files = mconv.quantize("Mistral-7B-v0.3", ["Q4_K_M", "Q6_K"], output_dir="gguf")
    report = mconv.validate([file.path for file in files], "Mistral-7B-v0.3", texts=["wiki.txt"])
    print(report.passed)

See docs/reference/python.md.
"""

from importlib import import_module

from mconv.convert import __version__, errors

# Two of the functions below have the same names as subpackages. Importing a subpackage sets its name in this module, so
# the subpackages must be imported before the functions.
for _name in ("quantize", "validate"):
    import_module(f"{__name__}.{_name}")

from mconv.api import GateResult, QuantizedFile, Report, inspect, open, plan, quantize, run, validate  # noqa: E402
from mconv.convert.reporting import Listener, listening  # noqa: E402

__all__ = [
    "GateResult",
    "Listener",
    "QuantizedFile",
    "Report",
    "__version__",
    "errors",
    "inspect",
    "listening",
    "open",
    "plan",
    "quantize",
    "run",
    "validate",
]
