"""Copies of a film among many: which pairs look so much alike that they are one exposure, encoded or trimmed anew.

Hashes propose pairs (:mod:`hdxray_fast.data.hash_search`), thumbnails decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..images.alignment import likeness
from ..images.perceptual_hash import perceptual_hash
from .hash_search import candidates

SAME_FILM = 0.83  # likeness from which two are one film: docs/prepare.md has the table it was chosen by
LOOKS = 20_000  # pairs at once


class NearPairs(NamedTuple):
    """Pairs of films that are copies of each other.

    Attributes:
        first, second: ``[P] int64``, rows, ordered by ``first``, then ``second``.
        likeness: ``[P] float32``, correlation of their detail: :data:`SAME_FILM` to 1.
    """

    first: np.ndarray
    second: np.ndarray
    likeness: np.ndarray


def near_pairs(thumbnails: np.ndarray, hashes: np.ndarray | None = None) -> NearPairs:
    """The near duplicates within a collection; each pair once, ``first < second``.

    Args:
        thumbnails: ``[N, 48, 48] uint8``, of :func:`hdxray_fast.images.perceptual_hash.equalised_thumbnail`; what gives
            them for an array of rows will do, since few of them are looked at.
        hashes: ``[N, 90] int8``, of :func:`hdxray_fast.images.perceptual_hash.perceptual_hash`; made by default.
    """
    hashes = perceptual_hash(thumbnails) if hashes is None else hashes
    first, second = candidates(hashes)
    return _decided(first, second, thumbnails, thumbnails)


def near_pairs_between(
    first: np.ndarray,
    second: np.ndarray,
    first_hashes: np.ndarray | None = None,
    second_hashes: np.ndarray | None = None,
) -> NearPairs:
    """The near duplicates of one collection in another: is a film of a test set among those of the training?

    Args:
        first, second: ``[N, 48, 48]`` and ``[M, 48, 48] uint8``, as :func:`near_pairs` takes them.
        first_hashes, second_hashes: likewise.

    Returns:
        Pairs of a row of ``first`` and a row of ``second``.
    """
    hashes = [
        perceptual_hash(thumbnails) if given is None else given
        for thumbnails, given in ((first, first_hashes), (second, second_hashes))
    ]
    here, there = candidates(np.concatenate(hashes), len(first))
    return _decided(here, there - len(first), first, second)


def united(patients: Sequence[str], first: Sequence[int], second: Sequence[int]) -> list[str]:
    """Patients for a draw of splits: those who share a film go by one name, so that both come to one part of it.

    Args:
        patients: one a row.
        first, second: rows that are copies of each other, as :func:`near_pairs` gives them.

    Returns:
        A patient a row: the first, by name, of all that are linked to this row's.
    """
    head = {patient: patient for patient in patients}

    def top(patient: str) -> str:
        while head[patient] != patient:
            head[patient] = patient = head[head[patient]]
        return patient

    for one, other in zip(first, second, strict=True):
        low, high = sorted((top(patients[one]), top(patients[other])))
        head[high] = low
    return [top(patient) for patient in patients]


def _decided(first: np.ndarray, second: np.ndarray, here: np.ndarray, there: np.ndarray) -> NearPairs:
    alike = np.empty(len(first), np.float32)
    for start in range(0, len(first), LOOKS):  # a memory map gives its rows in parts
        part = slice(start, start + LOOKS)
        alike[part] = likeness(here[first[part]], there[second[part]])
    chosen = np.flatnonzero(alike >= SAME_FILM)
    chosen = chosen[np.lexsort((second[chosen], first[chosen]))]
    return NearPairs(first[chosen], second[chosen], alike[chosen])
