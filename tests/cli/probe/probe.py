"""A command of the door's kind, small enough to start often."""

import logging
import os
import sys
from pathlib import Path
from typing import Literal, Protocol

from ivt2.cli.door import command
from ivt2.errors import InputError


class ProbeConfig(Protocol):
    x: float
    steps: int
    fail: Literal["input", "defect", "instantiate", "interrupt"] | None


@command("probe", keys=ProbeConfig, conf=Path(__file__).parent / "conf")
def main(cfg) -> float:
    logging.getLogger(__name__).info("torch imported: %s", "torch" in sys.modules)
    if cfg.fail == "input":
        raise InputError("clip.mp4: cannot be read; remove it")
    if cfg.fail == "defect":
        raise RuntimeError("a defect")
    if cfg.fail == "interrupt":
        raise KeyboardInterrupt
    if cfg.fail == "instantiate":
        from hydra.utils import instantiate

        instantiate(cfg.network, in_features=-1)
    (Path(cfg.paths.run_dir) / "parent.txt").write_text(os.environ.get("MLFLOW_RUN_CONTEXT", "none"))
    return cfg.x**2


if __name__ == "__main__":
    main()
