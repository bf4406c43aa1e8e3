"""Train, evaluate, or both: what happens is the configuration under ``conf/``.

    python train.py                                                   the tiny model on synthetic clips, on a CPU
    python train.py experiment=quickstart optimizer.lr=1e-3
    python train.py experiment=stage2_1b trainer=fsdp2 trainer.num_nodes=8 ckpt_path=last paths.run_dir=/runs/stage2_1b

``--help`` lists the groups, ``--cfg job --resolve`` prints the whole truth, ``-m`` sweeps.
"""

from pathlib import Path

from ivt2.cli.door import command
from ivt2.cli.schema import resolved
from ivt2.cli.train_config import TrainConfig, build_all, check_architecture, checkpoint, replaced, value_of


@command("train", keys=TrainConfig)
def main(cfg: TrainConfig) -> float | None:
    """Build the trainer, the data and the module, call the entry points of ``cfg.run``, return the objective."""
    from hydra.utils import instantiate
    from lightning.pytorch import seed_everything

    from ivt2.callbacks.provenance import Provenance

    ckpt_path = checkpoint(cfg.ckpt_path, Path(cfg.paths.run_dir), trains="fit" in cfg.run[:1])
    metrics: dict[str, object] = {}
    seed_everything(cfg.seed, workers=True)
    callbacks = [*build_all(cfg.callbacks), Provenance(config=resolved(cfg))]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=build_all(cfg.logger), _convert_="all")
    datamodule = instantiate(cfg.datamodule, _convert_="all")
    with trainer.init_module():
        module = instantiate(cfg.module, _convert_="all", **replaced(cfg.module, ckpt_path))
    check_architecture(module, ckpt_path)
    for entry in cfg.run:
        getattr(trainer, entry)(module, datamodule=datamodule, ckpt_path=ckpt_path)
        metrics |= trainer.callback_metrics
        if entry == "fit":
            ckpt_path = {"best": "best", "current": None}[cfg.after_fit]
    return value_of(metrics, cfg.objective)


if __name__ == "__main__":
    main()
