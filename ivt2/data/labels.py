"""What the json member of a sample says of its class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ivt2.data.annotations import facts_of
from ivt2.data.ledger import SampleError

NO_LABEL = -1
"""Stands for the class of a clip that has none."""

_MAX_CLASS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """Reads the class of a sample.

    Args:
        classes: names of the classes in order: the class is the place of ``label`` among them. Without them it is the
            number ``class_index``.
        required: a sample without a class cannot be used; otherwise it has the number -1.
    """

    classes: Sequence[str] = ()
    required: bool = False

    def __call__(self, members: Mapping[str, bytes]) -> int:
        """Return the number of the class, from 0.

        Args:
            members: of the sample, by type.

        Raises:
            SampleError: the json member cannot be read, or with the reasons ``label_missing``, ``label_invalid`` (no
                number, or no text where there are names) and ``label_unknown`` (none of the names).
        """
        value = facts_of(members).get("label" if self.classes else "class_index")
        if value is None:
            if self.required:
                raise SampleError("label_missing")
            return NO_LABEL
        return self._place(value) if self.classes else _number(value)

    def _place(self, label: object) -> int:
        if not isinstance(label, str):
            raise SampleError("label_invalid")
        if label not in self.classes:
            raise SampleError("label_unknown")
        return self.classes.index(label)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_CLASS:
        raise SampleError("label_invalid")
    return value
