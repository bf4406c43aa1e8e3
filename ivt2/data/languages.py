"""In which language a caption is written, guessed from its letters and their neighbours."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN = "und"
_MIN_CONFIDENCE = 0.1
"""Below it the text is too short to tell; the wrong guesses of single words lie there."""


def language_of(text: str) -> str:
    """Return the ISO 639 code of a text's language, ``und`` where it cannot be told.

    Captions of five words or more are told apart well; near relatives (Russian and Macedonian, Spanish and Galician)
    and single words are not.
    """
    language, _ = _identifier().classify(text)
    return str(language)


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_MIN_CONFIDENCE)
