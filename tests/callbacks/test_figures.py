import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from ivt2.callbacks.figures import Figures, Seen, _finds, choose_queries, thumbnails
from ivt2.metrics.retrieval import RetrievalResult


def test_thumbnails_are_the_middle_frame_made_small():
    video = torch.zeros(2, 4, 3, 100, 192, dtype=torch.uint8)
    video[1, 2, 0] = 200
    frames = thumbnails(video)
    assert [frame.shape for frame in frames] == [(50, 96, 3)] * 2
    assert frames[0].dtype == np.uint8
    assert frames[0].max() == 0
    assert (frames[1] == [200, 0, 0]).all()
    assert thumbnails(video[..., :10, :20])[0].shape == (10, 20, 3)


def test_finds_name_clips_by_index_and_captions_by_their_place():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.1, 0.2, 0.7]])
    result = RetrievalResult(similarity, torch.tensor([0, 0, 2]), torch.tensor([3, 5, 8]), {})
    queries = choose_queries(result, 8)
    assert queries == [(0, [3, 5, 8]), (1, [5, 8, 3]), (2, [8, 3, 5])]
    seen = {index: Seen(np.full((2, 2, 3), index), [f"{index}a", f"{index}b"]) for index in (3, 8)}
    finds = _finds(result, queries, seen)
    assert [found.caption for found in finds] == ["3a", "3b", "8a"]
    assert [found.right for found in finds] == [[True, False, False], [False, False, True], [True, False, False]]
    assert finds[1].frames[0] is None
    assert finds[1].frames[1][0, 0, 0] == 8


def test_queries_are_spread_over_the_set():
    result = RetrievalResult(torch.eye(100), torch.arange(100), torch.arange(100), {})
    queries = choose_queries(result, 4)
    assert [caption for caption, _ in queries] == [0, 33, 66, 99]
    assert all(len(clips) == 5 and clips[0] == caption for caption, clips in queries)


def test_a_batch_whose_samples_were_all_skipped_gives_no_picture(tmp_path):
    class Standing:
        is_global_zero, global_step = True, 1

    class Masked:
        last_masked = torch.zeros(0, 8, dtype=torch.bool)

    figures = Figures(tmp_path, every_n_steps=1)
    empty = {"video": torch.zeros(0, 2, 3, 8, 8, dtype=torch.uint8)}
    figures.on_train_batch_end(Standing(), Masked(), None, empty, 0)
    assert not list(tmp_path.rglob("*.png"))


class Clips(pl.LightningDataModule):
    def _batches(self):
        for index in (0, 1):
            yield {
                "video": torch.full((1, 2, 3, 8, 8), 100 * index, dtype=torch.uint8),
                "index": torch.tensor([index]),
                "clip_of_caption": torch.tensor([index, index]),
                "caption": [f"${index}", "b"],
                "source": "some set",
            }

    def _loader(self):
        return torch.utils.data.DataLoader(list(self._batches()), batch_size=None)

    train_dataloader = val_dataloader = test_dataloader = _loader


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.retrieval_results = {}
        self.last_masked = None

    def training_step(self, batch, batch_idx):
        self.last_masked = torch.tensor([[True, False, False, False] * 2])
        return self.weight * batch["video"].float().mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def on_validation_epoch_end(self):
        metrics = {"raw": {"t2v_r1": 100.0}}
        clips = torch.tensor([0, 0, 1, 1])
        result = RetrievalResult(torch.rand(2, 4), clips, torch.arange(2), metrics)
        self.retrieval_results = {"some set": result, "of an earlier evaluation": result}

    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_png_files_without_mlflow(make_trainer, tmp_path):
    callback = Figures(tmp_path, every_n_steps=3)
    trainer = make_trainer(max_steps=5, callbacks=[callback], num_sanity_val_steps=1)
    trainer.fit(Module(), Clips())
    trainer.test(trainer.lightning_module, Clips(), verbose=False)
    assert _names(tmp_path / "figures") == [
        "masked/step00000001.png",
        "masked/step00000004.png",
        *[f"some_set/test_step00000005_{kind}.png" for kind in ("queries", "similarity")],
        *[f"some_set/val_step0000000{step}_{kind}.png" for step in (2, 4) for kind in ("queries", "similarity")],
    ]
    assert callback._seen == {}


def test_artifacts_with_mlflow(make_trainer, mlflow_logger, tmp_path):
    trainer = make_trainer(max_steps=2, logger=mlflow_logger(), callbacks=[Figures(tmp_path / "run")])
    trainer.fit(Module(), Clips())
    assert not (tmp_path / "run").exists()
    (folder,) = (tmp_path / "artifacts").rglob("figures")
    assert _names(folder) == [
        "masked/step00000001.png",
        "some_set/val_step00000002_queries.png",
        "some_set/val_step00000002_similarity.png",
    ]


def test_other_modules_and_batches_are_left_alone(make_trainer, tmp_path, module, data):
    make_trainer(max_steps=6, callbacks=[Figures(tmp_path / "run")]).fit(module, data)
    assert not (tmp_path / "run").exists()


def test_a_mask_that_does_not_fit_stops_nothing(make_trainer, tmp_path, caplog):
    module = Module()
    module.training_step = lambda batch, batch_idx: module.weight * batch["video"].float().mean()
    module.last_masked = torch.zeros(1, 7, dtype=torch.bool)
    trainer = make_trainer(max_steps=1, limit_val_batches=0, callbacks=[Figures(tmp_path / "run")])
    trainer.fit(module, Clips())
    assert "no picture of the masked clip" in caplog.text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["index", "caption", "video"])
def test_batches_without_clips_are_not_kept(tmp_path, missing):
    callback = Figures(tmp_path)
    batch = next(Clips()._batches())
    del batch[missing]
    callback.on_test_batch_end(None, None, None, batch, 0)
    assert callback._seen == {}
