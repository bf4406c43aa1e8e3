"""Captions as the training data had them."""

import re

_DELETED = str.maketrans("", "", ",.'!?\"()*#:;~")
_SPACES = str.maketrans("-/", "  ")


def normalize_caption(caption: str) -> str:
    """Lower-case a caption and strip its punctuation.

    Deletes ``, . ' ! ? " ( ) * # : ; ~``; turns ``-`` and ``/`` into spaces and ``<person>`` (LSMDC's anonymous name)
    into ``person``; collapses runs of white space; strips trailing newlines and outer spaces. Other scripts'
    punctuation stays. Idempotent: normalising twice changes nothing.

    Source: reference multi_modality, caption clean-up of every dataset and prompt.
    """
    text = caption.lower().translate(_DELETED).translate(_SPACES)
    while "<person>" in text:
        text = text.replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
