"""`import ivt2.models` works with torch, numpy and jaxtyping alone."""

import subprocess
import sys

HEAVY = ("lightning", "hydra", "omegaconf", "mlflow", "webdataset", "decord", "av", "transformers", "peft")

SCRIPT = f"""
import importlib, pkgutil, sys
for name in {HEAVY}:
    sys.modules[name] = None
import ivt2.models
modules = [module.name for module in pkgutil.iter_modules(ivt2.models.__path__, "ivt2.models.")]
for name in modules:
    importlib.import_module(name)
print("imported", *modules)
"""


def test_models_import_without_heavy_packages():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ivt2.models.internvideo2" in done.stdout.split()


def test_a_blocked_package_would_be_noticed():
    script = SCRIPT.replace("import ivt2.models\n", "import ivt2.models\nimport lightning\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "lightning" in done.stderr
