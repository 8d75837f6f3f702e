"""Some of the training patients: how many were asked for, how many were taken, and why more."""

from __future__ import annotations

from dataclasses import replace

from ..data.splits import patient_place
from ..errors import ConfigError
from .label_table import LabelTable

LEAST = 2  # patients with a positive, and with a negative, of each class: a class is not learned from less
NAMED = 5  # classes that a note names


def take_fraction(table: LabelTable, share: float, seed: int, exact: bool = False) -> LabelTable:
    """All of ``val`` and ``test``, and the training images of a share of the patients.

    Patients are taken in an order that depends on seed and patient id alone, so that a smaller share is part of a
    larger one. ``fraction`` of the table counts them, and a note says it.

    Args:
        table: with its splits.
        share: of the training patients, above 0 and up to 1.
        seed: of the order.
        exact: take these alone. Otherwise patients are added until each class has two with a positive and two with a
            negative, where there are such; these are more often ill than the others.

    Raises:
        ConfigError: the share is not accepted, or of classes that exclude each other one would have no image left.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"label_fraction: got {share}, accepted is a share above 0 and up to 1")
    train = [i for i, split in enumerate(table.splits) if split == "train"]
    patients = sorted({table.patients[i] for i in train}, key=lambda patient: patient_place(patient, seed + 1))
    asked = max(1, round(share * len(patients)))
    wanted = set(patients[:asked])
    added: dict[str, int] = {}
    for column, name in enumerate(table.classes):
        for value in (1, 0):
            holders = {table.patients[i] for i in train if table.labels[i, column] == value}
            if exact:
                if table.multiclass and value == 1 and not holders & wanted:
                    raise ConfigError(
                        f"exact_fractions: the {asked} patients taken have no image of {name!r}, and its classes "
                        "exclude each other; take a larger share, or go without exact_fractions"
                    )
                continue
            new = set([patient for patient in patients if patient in holders][:LEAST]) - wanted
            if new:
                added[name] = added.get(name, 0) + len(new)
                wanted |= new
    taken = table.rows([i for i, s in enumerate(table.splits) if s != "train" or table.patients[i] in wanted])
    fraction = {"share": share, "patients": len(patients), "asked": asked, "taken": len(wanted), "added": added}
    notes = [*table.notes, describe_fraction(fraction, table.patients_known)] if share < 1 else table.notes
    return replace(taken, fraction=fraction, notes=notes)


def describe_fraction(fraction: dict, patients_known: bool = True) -> str:
    """How many patients (images, where patients are not known) were asked for and taken, in words."""
    whom = "patients" if patients_known else "images"
    text = (
        f"labels of {fraction['share']:g} of the training {whom}: {fraction['asked']} of {fraction['patients']} "
        f"asked for, {fraction['taken']} taken"
    )
    if not fraction["added"]:
        return text
    return (
        f"{text}: {fraction['taken'] - fraction['asked']} added for {added_for(fraction['added'])}, so that each class "
        f"has {LEAST} with a positive and {LEAST} with a negative (--exact-fractions true adds none)"
    )


def added_for(added: dict[str, int]) -> str:
    """``"Hernia (3), Fibrosis (1)"``, most first."""
    most = sorted(added.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} ({count})" for name, count in most[:NAMED])
    return shown if len(most) <= NAMED else f"{shown} and {len(most) - NAMED} more classes"
