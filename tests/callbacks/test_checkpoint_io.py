import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from ivt2.callbacks.checkpoint_io import CONFIG_KEY, DirectoryCheckpointIO
from ivt2.checkpoint import load_checkpoint, newest_valid, read_metadata
from ivt2.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory")


@pytest.fixture
def trainer_in(make_trainer, tmp_path):
    def make(callbacks=(), **options):
        checkpoint = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=2, save_top_k=1, save_last=True)
        return make_trainer(
            enable_checkpointing=True, plugins=[DirectoryCheckpointIO()], callbacks=[*callbacks, checkpoint], **options
        )

    return make


def test_model_checkpoint_keeps_the_last_and_removes_the_old(trainer_in, tmp_path, module, data):
    trainer_in(max_steps=7).fit(module, data)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["last.ckpt", "step=6.ckpt"]
    assert newest_valid(tmp_path / "c") == tmp_path / "c" / "last.ckpt"
    assert read_metadata(tmp_path / "c" / "last.ckpt")["global_step"] == 6
    state = load_checkpoint(tmp_path / "c" / "last.ckpt")
    assert state["TinyData"] == {"started": 7}
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"seen": 6}]


def test_last_restores_optimizer_schedule_loops_and_data(trainer_in, module, data):
    first = trainer_in(max_steps=6)
    first.fit(module, data)
    moments = first.optimizers[0].state_dict()["state"]
    resumed_module, resumed_data = type(module)(), type(data)()
    resumed = trainer_in(max_steps=6)
    resumed.fit(resumed_module, resumed_data, ckpt_path="last")
    assert resumed.global_step == 6
    assert resumed.current_epoch == 1
    assert resumed_data.started == 7
    assert resumed.lr_scheduler_configs[0].scheduler.last_epoch == 6
    restored = resumed.optimizers[0].state_dict()["state"]
    for index, state in moments.items():
        assert all(torch.equal(state[name], restored[index][name]) for name in state)
    weights = zip(module.state_dict().values(), resumed_module.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_state_of_other_callbacks_comes_back(trainer_in, tmp_path, module, data):
    callbacks = [EarlyStopping("train/loss", patience=50), Timer(duration="00:01:00:00")]
    trainer_in(callbacks, max_steps=6).fit(module, data)
    stopping = EarlyStopping("train/loss", patience=50)
    trainer_in([stopping, Timer(duration="00:01:00:00")], max_steps=8).fit(module, data, ckpt_path="last")
    assert stopping.best_score < torch.inf


def test_best_of_a_monitored_metric_and_test_from_it(make_trainer, tmp_path, module, data):
    checkpoint = ModelCheckpoint(tmp_path / "c", "{epoch}", monitor="val/loss", save_top_k=2, save_last="link")
    trainer = make_trainer(
        enable_checkpointing=True, plugins=[DirectoryCheckpointIO()], callbacks=[checkpoint], max_epochs=5
    )
    trainer.fit(module, data)
    folders = [path for path in (tmp_path / "c").iterdir() if not path.is_symlink()]
    assert len(folders) == 2
    trainer.test(module, data, ckpt_path="best")
    saved = load_checkpoint(checkpoint.best_model_path)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions(trainer_in, tmp_path, module, data, precision):
    trainer_in(max_steps=2, precision=precision, limit_val_batches=0).fit(module, data)
    saved = load_checkpoint(tmp_path / "c" / "last.ckpt")["state_dict"]["net.0.weight"]
    assert saved.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float64)


def test_configuration_is_readable_beside_the_state(tmp_path):
    DirectoryCheckpointIO().save_checkpoint({"state_dict": {}, CONFIG_KEY: {"lr": 1}}, tmp_path / "a.ckpt")
    assert '"lr": 1' in (tmp_path / "a.ckpt" / "config.json").read_text()


def test_damage_stops_a_resume_before_anything_is_loaded(trainer_in, tmp_path, module, data):
    trainer_in(max_steps=2).fit(module, data)
    path = tmp_path / "c" / "last.ckpt" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"state.safetensors: damaged"):
        trainer_in(max_steps=4).fit(module, data, ckpt_path="last")


def test_refusals(tmp_path):
    plugin = DirectoryCheckpointIO()
    with pytest.raises(InputError, match="local folder"):
        plugin.save_checkpoint({}, "s3://bucket/a.ckpt")
    with pytest.raises(TypeError, match="storage options"):
        plugin.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"x": 1})
    (tmp_path / "lightning.ckpt").write_bytes(b"PK")
    with pytest.raises(InputError, match="is a file"):
        plugin.load_checkpoint(tmp_path / "lightning.ckpt")
