"""The contrastive loss of a run, chosen by name: softmax or sigmoid, whole or chunk by chunk.

Letters: b pairs of this rank, D width.
"""

from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from ivt2.errors import InputError
from ivt2.losses.contrastive import contrastive_loss
from ivt2.losses.contrastive_local import local_contrastive_loss
from ivt2.losses.sigmoid import sigmoid_loss
from ivt2.ops.distributed import all_gather
from ivt2.ops.similarity import Temperature


class Contrast:
    """Features of this rank against those of all ranks.

    Args:
        form: ``softmax`` picks each row's partner among all columns (`contrastive_loss`), ``sigmoid`` judges every pair
            for itself (`sigmoid_loss`) and needs a learned bias.
        chunk: rows that this rank compares with all columns at a time, at least 1. None compares all at once: with
            ``softmax`` every rank then computes the whole matrix, as the reference does.
        reference_gradient_scale: scale the gradient of the features by one over the number of ranks, as the reference
            does; with ``softmax`` and no chunk.

    Raises:
        InputError: a chunk below 1, or a scale that the chosen loss does not have.
    """

    def __init__(
        self,
        *,
        form: Literal["softmax", "sigmoid"] = "softmax",
        chunk: int | None = None,
        reference_gradient_scale: bool = False,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise InputError(f"contrast.chunk={chunk}: give the rows compared at a time, at least 1, or null for all")
        if reference_gradient_scale and (form, chunk) != ("softmax", None):
            raise InputError(
                f"reference_gradient_scale=true with contrast.form={form} and contrast.chunk={chunk}: the reference "
                "has neither; take form=softmax and chunk=null"
            )
        self.form = form
        self.chunk = chunk
        self.reference_gradient_scale = reference_gradient_scale

    def check_bias(self, *, learned: bool) -> None:
        """Refuse a model without the bias that the loss needs, or with one that it would never train.

        Args:
            learned: whether the model has a learned bias.

        Raises:
            InputError: if it does not fit the form.
        """
        if self.form == "sigmoid" and not learned:
            raise InputError("contrast.form=sigmoid needs a learned bias: set module.model.logit_bias=-10")
        if self.form == "softmax" and learned:
            raise InputError("contrast.form=softmax has no use for module.model.logit_bias: set it to null")

    def __call__(
        self,
        visual: Float[Tensor, "b D"],
        text: Float[Tensor, "b D"],
        temperature: Temperature,
        ids: Int64[Tensor, "b"],
        bias: Float[Tensor, "1"] | None = None,
    ) -> Float[Tensor, ""]:
        """This rank's share: its mean over ranks is the loss of the global batch. Every rank must call it.

        Args:
            visual: features of one modality on this rank.
            text: features of the other modality, row by row.
            temperature: divisor of the cosines, > 0.
            ids: rows of equal id, on whichever rank, are positives of each other.
            bias: added to the logits of ``sigmoid``.
        """
        if self.form == "sigmoid":
            assert bias is not None, "check_bias() was asked"
            return sigmoid_loss(visual, text, temperature, bias, ids, chunk=self.chunk)
        if self.chunk is not None:
            return local_contrastive_loss(visual, text, temperature, ids, chunk=self.chunk)
        all_visual, all_text = (
            all_gather(each, reference_gradient_scale=self.reference_gradient_scale) for each in (visual, text)
        )
        return contrastive_loss(all_visual, all_text, temperature, all_gather(ids))
