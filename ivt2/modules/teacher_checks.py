"""Whether a teacher can say anything, and whether what a student decodes can be compared with it."""

from torch import nn

from ivt2.errors import InputError
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.teacher import Teacher
from ivt2.nn.aligning import AligningDecoders, FeatureDecoder


def check_finite(name: str, teacher: Teacher) -> None:
    """Refuse a teacher that cannot say anything.

    Args:
        name: what it is called.
        teacher: whose weights are looked at.

    Raises:
        InputError: A weight is not finite.
    """
    for weight, parameter in teacher.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{name}: {weight} holds NaN or infinity: convert the teacher's file again")


def check_patches(name: str, teacher: Teacher, encoder: InternVideo2) -> None:
    """Refuse a teacher that cuts clips into other patches than a student does.

    Args:
        name: what it is called.
        teacher: who sees all.
        encoder: the student's.

    Raises:
        InputError: Patches on a side, or positions in time, differ.
    """
    own = teacher.encoder
    if own.grid_size != encoder.grid_size:
        raise InputError(
            f"{name}: cuts a frame into {own.grid_size} x {own.grid_size} patches, the student into "
            f"{encoder.grid_size} x {encoder.grid_size}: set the teacher's image_size={encoder.grid_size} * patch_size"
        )
    # A network of images takes any number of them.
    if own.num_frames > 1 and own.grid_frames != encoder.grid_frames:
        raise InputError(
            f"{name}: has {own.grid_frames} positions in time, the student {encoder.grid_frames}: set the "
            f"teacher's num_frames={encoder.grid_frames * own.tubelet_size}"
        )


def check_decoders(
    decoders: AligningDecoders | None, teacher: Teacher, *, pooled: bool, where: str, whose: str, remedy: str
) -> None:
    """Refuse a student that cannot be compared with its teacher.

    Args:
        decoders: the student's, towards this teacher.
        teacher: what they are compared with.
        pooled: whether pooled vectors are compared, or tokens.
        where: what the decoders are called.
        whose: what the teacher is called.
        remedy: how to do without the comparison.

    Raises:
        InputError: there are no decoders, or numbers of layers, CLS tokens or widths differ.
    """
    if decoders is None:
        raise InputError(f"{where} are missing: add them, or {remedy}")
    decoder: nn.Module
    if pooled:
        decoder, wanted = decoders.final, teacher.final_dim
    else:
        decoder, wanted = decoders.decoders[0], teacher.encoder.embed_dim
        _check_layers(where, decoders, teacher)
    if not isinstance(decoder, FeatureDecoder) or wanted is None:
        lacking = f"{whose} has" if wanted is None else f"{where} have"
        raise InputError(f"{lacking} no pooled vector to compare: {remedy}")
    width = decoder.norm.normalized_shape[0]
    if width != wanted:
        raise InputError(f"{where} give width {width}, {whose} {wanted}: build them with that width")
    if not decoder.normalize:
        raise InputError(
            f"{where} do not normalise, but the loss compares unit vectors: build them with normalize=true"
        )


def _check_layers(where: str, decoders: AligningDecoders, teacher: Teacher) -> None:
    number, taps = len(decoders.decoders), len(teacher.taps)
    if number != taps:
        raise InputError(
            f"{where} are {number} for {taps} taps of the teacher: tap as many blocks as there are decoders"
        )
    if decoders.num_prefix != teacher.num_prefix:
        wanted = "true" if teacher.num_prefix else "false"
        raise InputError(f"{where} and their teacher differ in the CLS token: build them with cls_token={wanted}")
