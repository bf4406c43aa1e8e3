"""Facts of the machine and of the code that a result depends on."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = (
    "ivt2",
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "av",
    "decord",
    "webdataset",
    "safetensors",
    "tokenizers",
    "hydra-core",
    "mlflow",
    "flash-attn",
)

_GIT_SECONDS = 10


def revision(folder: Path | None = None) -> dict[str, str]:
    """Git commit of the code and whether files differ from it.

    Args:
        folder: A folder of the checkout; by default where this package lies.

    Returns:
        ``commit`` and ``dirty`` (``yes`` or ``no``); ``unknown`` where the code is not a checkout.
    """
    folder = folder or Path(__file__).parent
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if not commit or changes is None:
        return {"commit": "unknown", "dirty": "unknown"}
    return {"commit": commit, "dirty": "yes" if changes else "no"}


def hardware() -> dict[str, str | int]:
    """Kind of machine, and number and name of its GPUs."""
    facts: dict[str, str | int] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "gpus": torch.cuda.device_count(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def versions() -> dict[str, str]:
    """Versions of Python, of CUDA and of the packages that a number may depend on."""
    found = {"python": platform.python_version(), "system": platform.platform(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_gb() -> dict[str, float]:
    """Largest main memory (this process) and GPU memory (this process's device) so far, in 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        peaks["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return peaks


def _git(folder: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    command = [program, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
