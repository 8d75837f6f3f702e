"""What a report model's validation found, as the model's folder keeps it, and what there is to warn of."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..terminal import are

FEW = 20  # studies: below, a score hangs on a sentence or two
NOTHING = 0.005  # BLEU-4 that is written as 0.00


@dataclass(frozen=True)
class Validated:
    """The validation that a report model was kept by.

    Attributes:
        split: what was written on: ``"val"``, or ``"train"``.
        studies: of it that were validated on; 0 where nobody validates.
        bleu4: of the texts against the raw reports, 0 to 1; ``None`` where nobody validates.
    """

    split: str
    studies: int
    bleu4: float | None = None

    @classmethod
    def of(cls, record: object) -> Validated | None:
        """What :meth:`record` gave; ``None`` of a model that keeps none, as of earlier releases, or a damaged one."""
        try:
            split, studies, bleu4 = record["split"], int(record["studies"]), record["bleu4"]
            return cls(str(split), studies, None if bleu4 is None else float(bleu4))
        except (KeyError, TypeError, ValueError):
            return None

    def record(self) -> dict:
        """As the model's folder keeps it."""
        return asdict(self)

    def warning(self) -> str:
        """What whoever reads the model's reports is to know; blank if nothing is."""
        if self.bleu4 is None:
            return "this model was never validated: nobody knows whether its sentences say anything about these images"
        if self.bleu4 >= NOTHING:
            return ""
        whose = "training" if self.split == "train" else "validation"
        return (
            f"this model's reports matched nothing of its {whose} reports (BLEU-4 {self.bleu4:.2f}): its sentences say "
            "nothing about these images"
        )


def few_to_validate(split: str, studies: int, drawn: bool, val_share: float, most: int) -> str:
    """A warning where the studies to validate on are too few to choose a model by; blank if they are enough.

    Args:
        split: ``"val"`` or ``"train"``.
        studies: so many are validated on.
        drawn: the split was drawn, by ``val_share``.
        val_share: share of the patients.
        most: ``validate_studies``.
    """
    if not 0 < studies < FEW:
        return ""
    if studies >= most:
        how = f"raise --validate-studies (now {most})"
    elif split == "train":
        how = "there are no more to train on"
    elif drawn:
        how = f"raise --val-share (now {val_share:g})"
    else:
        how = "give more studies the split val in the data"
    return f"{are(studies, 'study')} few to choose the best model by, or to trust its scores ({split}): {how}"
