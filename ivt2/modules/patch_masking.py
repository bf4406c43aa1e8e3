"""Which patches of a training clip stay hidden: a hash of its seed, whatever stands beside it in the batch."""

from collections.abc import Mapping

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ivt2.models.internvideo2 import InternVideo2
from ivt2.ops.masking import Masking, check_mask_ratio, draw_mask
from ivt2.ops.random import Stream, uniform


class PatchMasking:
    """Draws masks of clips and of images.

    Args:
        masking: ``random`` hides patches anywhere in the clip, ``tube`` the same ones in every frame, ``attention``
            those that a teacher hardly attends to.
        mask_ratio: Share of hidden patches in [0, 1) for ``video`` and ``image`` (clips of one frame); 0 where a kind
            is not named.

    Raises:
        InputError: if a ratio is out of range.
    """

    def __init__(self, masking: Masking, mask_ratio: Mapping[str, float]) -> None:
        for ratio in mask_ratio.values():
            check_mask_ratio(ratio)
        self.masking = masking
        self.mask_ratio = dict(mask_ratio)

    def draw(
        self,
        encoder: InternVideo2,
        video: Float[Tensor, "B T C H W"] | UInt8[Tensor, "B T C H W"],
        seed: Int64[Tensor, "B"],
        attention: Float[Tensor, "rows patches"] | None = None,
    ) -> Bool[Tensor, "B N"] | None:
        """True where a patch is hidden, the same number in every clip; None where none is.

        Args:
            encoder: what cuts the clips into patches.
            video: clips of ``encoder.num_frames`` frames, or of one.
            seed: of each clip.
            attention: of a teacher that saw the clips, see ``ivt2.ops.masking.teacher_masking``; for ``attention``.
        """
        num_frames = video.shape[1]
        ratio = self.mask_ratio.get("video" if num_frames > 1 else "image", 0.0)
        if ratio == 0:
            return None
        grid_frames = num_frames // encoder.tubelet_size
        noise = uniform(seed, encoder.num_patches_per_frame * grid_frames, Stream.PATCHES)
        return draw_mask(self.masking, noise, ratio, grid_frames, attention)
