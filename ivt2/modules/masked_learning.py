"""Students that see a few patches of a clip and learn what frozen teachers, who see all of it, say about these.

    loss = w_clip_middle * mean(2 - 2 cos) + w_clip_final * mean(2 - 2 cos) + w_mae * mean(2 - 2 cos)

over aligned layers, clips and visible tokens, as in section 3.1 of arXiv:2403.15377.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ivt2.batch import ClipBatch
from ivt2.errors import InputError
from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage1 import Stage1Student, StudentLayers
from ivt2.models.teacher import Teacher
from ivt2.modules.masked_targets import MaskedTargets, Role, Targets
from ivt2.modules.optimization import MakeOptimizer, MakeSchedule, optimizer_with_schedule
from ivt2.modules.teacher_checks import check_decoders
from ivt2.ops.distributed import all_gather, global_mean
from ivt2.ops.masking import Masking
from ivt2.ops.sharding import shard
from ivt2.optim.parameter_groups import parameter_groups

TERMS: Mapping[str, Role] = {"clip_middle": "clip", "clip_final": "clip", "mae": "mae"}
"""Terms of the loss, and the teacher that each listens to."""


class MaskedLearning(LightningModule, ABC):
    """Trains one or several students on one pass of the teachers over :class:`ClipBatch`.

    Every mask is a hash of its clip's seed, so it does not depend on ranks, workers or what ran before; stochastic
    depth alone (``drop_path``) draws from torch's generator.

    Args:
        students: By name. They cut clips into the same patches, so that one mask serves all. Decoders towards a teacher
            that no term listens to are taken off them.
        teachers: One or two; those that no term listens to are not asked.
        weights: Factor of each term, of ``clip_middle``, ``clip_final`` and ``mae``; one that is 0 or not named, or
            whose teacher is not there, is not computed.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Makes the schedule from the optimizer and ``total_steps``.
        masking: See :class:`MaskedTargets`.
        mask_ratio: See :class:`MaskedTargets`.
        masks_per_clip: See :class:`MaskedTargets`; the loss is the mean over all masks.
        whiten: See :class:`MaskedTargets`.

    Raises:
        InputError: Besides those of :class:`MaskedTargets`: unknown or negative weight, or students that do not decode
            what the teachers say.
    """

    def __init__(
        self,
        students: Mapping[str, Stage1Student],
        teachers: Mapping[Role, Teacher],
        *,
        weights: Mapping[str, float],
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        masking: Masking,
        mask_ratio: float,
        masks_per_clip: int,
        whiten: Sequence[Role] = (),
    ) -> None:
        super().__init__()
        if set(weights) - set(TERMS) or any(weight < 0 for weight in weights.values()):
            raise InputError(f"weights={dict(weights)}: name some of {', '.join(TERMS)}, with numbers from 0 on")
        self.weights = {term: weight for term, weight in weights.items() if weight and TERMS[term] in teachers}
        asked = {role: teacher for role, teacher in teachers.items() if _is_asked(role, self.weights, masking)}
        encoder = next(iter(students.values())).encoder
        self.targets = MaskedTargets(
            asked,
            encoder=encoder,
            masking=masking,
            mask_ratio=mask_ratio,
            masks_per_clip=masks_per_clip,
            whiten=whiten,
        )
        if not self.weights:
            raise InputError(f"weights={dict(weights)}: no term of a given teacher has a weight above 0: raise one")
        for name, student in students.items():
            _check_patches(name, student.encoder, encoder)
            for term in self.weights:
                _check_term(name, student, term, asked[TERMS[term]])
            _drop_decoders(student, {TERMS[term] for term in self.weights})
        self.optimizer = optimizer
        self.schedule = schedule
        self.last_masked: Tensor | None = None

    @abstractmethod
    def named_students(self) -> dict[str, Stage1Student]:
        """Students by name; the name of an only one is empty."""

    def setup(self, stage: str) -> None:
        """Check the teachers' weights before they are asked for the first time."""
        if stage == "fit":
            self.targets.check_weights()

    def configure_model(self) -> None:
        """Shard the students' blocks where the engine asks for it (``trainer=fsdp2``)."""
        if self.device_mesh is None:
            return
        for student in self.named_students().values():
            mesh = self.device_mesh["data_parallel"]
            shard(student, mesh, units=student.sharding_units(), methods=student.ENTRY_POINTS)

    def on_fit_start(self) -> None:
        """Bring the teachers to the device, which Lightning does not know of."""
        self.targets.to(self.device)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Sum over students of the weighted terms, as a mean over the clips of all ranks."""
        size = len(batch["video"])
        targets = self.targets(batch["video"], batch["seed"])
        self.last_masked = targets.masked[:size]
        share = global_mean(torch.tensor(float(size), device=targets.video.device), size)
        losses: list[Tensor] = []
        report: dict[str, Tensor] = {}
        for name, student in self.named_students().items():
            said = student.decode(targets.video, visible=targets.visible)
            layers = {term: share * _distances(term, said, targets) for term in self.weights}
            losses.append(torch.stack([self.weights[term] * each.mean() for term, each in layers.items()]).sum())
            report |= _report(name, student, layers, share) | ({f"train/{name}/loss": losses[-1]} if name else {})
        loss = torch.stack(losses).sum()
        self._log_means(report | {"train/loss": loss}, size)
        return loss

    @torch.no_grad()
    def encode(
        self, video: UInt8[Tensor, "B T C H W"] | Float[Tensor, "B T C H W"], student: str | None = None
    ) -> Float[Tensor, "B D"]:
        """Mean tokens of whole clips in evaluation mode; the mode is as before afterwards.

        What a probe sees, the same before the first step and after the last: :meth:`Stage1Student.encode_video`.

        Args:
            video: RGB pixels, with the student's frames or with those of a training batch, of which it sees its part.
            student: Name of one of several; None is the first.
        """
        students = self.named_students()
        network = students[next(iter(students)) if student is None else student]
        stride = 1 if video.shape[1] == network.encoder.num_frames else self.targets.stride
        training = network.training
        network.eval()
        pooled = network.encode_video(video[:, ::stride])
        network.train(training)
        return pooled

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer, those of each student in groups of its own; matrices alone decay."""
        groups = []
        for name, student in self.named_students().items():
            own = parameter_groups(student.named_parameters(), no_weight_decay=student.no_weight_decay())
            groups += [group | {"name": f"{name}/{group['name']}" if name else group["name"]} for group in own]
        return groups

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Step the schedule with the optimizer."""
        return optimizer_with_schedule(
            self.optimizer_groups(), optimizer=self.optimizer, schedule=self.schedule, trainer=self.trainer
        )

    def _log_means(self, report: Mapping[str, Tensor], size: int) -> None:
        """Log means over ranks, which are exchanged all at once: there may be dozens of numbers."""
        values = all_gather(torch.stack(list(report.values())).detach().unsqueeze(0)).mean(dim=0)
        for key, value in zip(report, values, strict=True):
            self.log(key, value, batch_size=size, prog_bar=key == "train/loss")


def _is_asked(role: Role, weights: Mapping[str, float], masking: Masking) -> bool:
    return any(TERMS[term] == role for term in weights) or (role == "clip" and masking == "attention")


def _distances(term: str, layers: StudentLayers, targets: Targets) -> Float[Tensor, "layers"]:
    """Mean of ``2 - 2 cos`` in each aligned layer; the pooled vector counts as one."""
    said = targets.said[TERMS[term]]
    student = layers._asdict()[term]
    pairs = zip(student, said.middle, strict=True) if term != "clip_final" else [(student, said.final)]
    return torch.stack([feature_alignment_loss(*pair) for pair in pairs])


def _report(name: str, student: Stage1Student, layers: Mapping[str, Tensor], share: Tensor) -> dict[str, Tensor]:
    """Terms, and the mean cosine in each aligned block of the student, under its name where there are several."""
    prefix = f"train/{name}/" if name else "train/"
    blocks = {"clip_middle": student.clip_taps, "clip_final": ("final",), "mae": student.mae_taps}
    report = {f"{prefix}loss_{term}": distances.mean() for term, distances in layers.items()}
    for term, distances in layers.items():
        cosines = share - distances / 2
        names = [f"{prefix}cosine_{TERMS[term]}/{block}" for block in blocks[term]]
        report |= dict(zip(names, cosines, strict=True))
    return report


def _drop_decoders(student: Stage1Student, heard: Collection[Role]) -> None:
    """Without a term they would run, be saved and be sharded for nothing."""
    if "clip" not in heard:
        student.clip_decoders, student.clip_taps = None, ()
    if "mae" not in heard:
        student.mae_decoders, student.mae_taps = None, ()


def _check_patches(name: str, encoder: InternVideo2, first: InternVideo2) -> None:
    """Masks are drawn for the first student."""
    cut, wanted = ((each.num_frames, each.tubelet_size, each.grid_size) for each in (encoder, first))
    if cut != wanted:
        raise InputError(
            f"student {name!r}: num_frames, tubelet_size and patches on a side are {cut}, of the first student "
            f"{wanted}: students that share masks need the same"
        )


def _check_term(name: str, student: Stage1Student, term: str, teacher: Teacher) -> None:
    """Refuse a student that cannot be compared with its teacher in a term."""
    role = TERMS[term]
    check_decoders(
        student.clip_decoders if role == "clip" else student.mae_decoders,
        teacher,
        pooled=term == "clip_final",
        where=f"student {name!r}: {role}_decoders" if name else f"student: {role}_decoders",
        whose=f"the {role}_teacher",
        remedy=f"set weights.{term}=0",
    )
