"""One recorded case: configuration, weights, inputs and reference results."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by what stands behind it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Case:
    """A ``<case>_<variant>_<split>.json`` with the safetensors file of the same name, where there is one."""

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @property
    def name(self) -> str:
        return self.record["case"]

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def json(self) -> dict[str, Any]:
        """Results that are not tensors."""
        return self.record["outputs_json"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        file = self.path.with_suffix(".safetensors")
        return load_file(file) if file.exists() else {}

    @property
    def inputs(self) -> dict[str, Tensor]:
        return under(self.tensors, "in/")

    @property
    def outputs(self) -> dict[str, Tensor]:
        return under(self.tensors, "out/")

    def state(self, model: str) -> dict[str, Tensor]:
        """Reference state dict of one sub-model, under the reference's own parameter names."""
        return under(self.tensors, f"sd/{model}/")

    def outputs_of(self, model: str) -> dict[str, str]:
        """Recorded outputs of one sub-model of the configuration by what stands behind its name.

        An output belongs to the longest name that it begins with, so that one name may begin with another.
        """
        return {
            output.removeprefix(f"{model}_"): output
            for output in self.outputs
            if max((name for name in self.config if output.startswith(f"{name}_")), key=len, default=None) == model
        }

    def close(self, name: str, actual: Tensor, *, atol: float | None = None, rtol: float = 1e-5) -> None:
        """Compare with the recorded ``out/<name>``; the message names the case and the output.

        ``atol`` is 1e-5 of the greatest recorded value unless given.
        """
        expected = self.outputs[name]
        if atol is None:
            atol = 1e-5 * expected.double().abs().max().item() if expected.numel() else 0.0
        if actual.shape != expected.shape:
            raise AssertionError(f"{self.name}/{name}: shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}")
        torch.testing.assert_close(
            actual.detach().to(expected.dtype),
            expected,
            atol=atol,
            rtol=rtol,
            msg=lambda text: f"{self.name}/{name}: {text}",
        )
