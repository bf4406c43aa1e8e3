"""What a rank of CLIP post-training finds; run by stage2_ranks.py, for processes are slow to start."""

from ivt2.losses.contrast import Contrast
from tests.modules.clip_case import FROZEN, make, make_model

FORMS = {"softmax": {}, "chunked": {"chunk": 2}, "sigmoid": {"form": "sigmoid", "chunk": 2}}


def build(form):
    """A module of this form of contrast whose towers are frozen, as published."""
    bias = -2.0 if form == "sigmoid" else None
    return make(make_model(logit_bias=bias), contrast=Contrast(**FORMS[form]), **FROZEN)
