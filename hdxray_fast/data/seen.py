"""Whom and what a model was trained on, kept beside it as hashes, and how its splits were drawn.

So a test on the same is noticed, and the model's own split is found again.

Hashes of patients are made with a key that stays with the run (:mod:`.seen_key`): a model that is given away says of no
id whether it was there, and its owner can ask. Those of stored pixels are plain: who has the film can ask anywhere.

Each kind of key is looked up by itself: ``patients`` and ``pixels`` are equal or they are not; of ``near``, the
signatures by which near duplicates are found, one is looked for that is much alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CheckpointError, ConfigError
from ..files import save_tensors, written_whole
from ..images.film_signature import film_signature
from ..regular_files import check_tensors, parse_json, reason_of
from .seen_key import KEY_FILE, fits, is_same, key_of, keyed, sealed
from .signature_search import found_among
from .splits import SPLITS

SEEN_FILE = "seen.safetensors"  # in a model's folder
DRAWN_FILE = "splits.safetensors"  # in a run's folder: where a resumed run finds the splits it began with
FORMAT = "hdxray_fast.seen"
KINDS = ("patients", "pixels")
WAYS = {"patients": "of the same patients", "pixels": "equal to the pixel", "near": "near duplicates"}
NEAR = "near"  # records of earlier releases have no such keys
MOST_SEEN = 0.5  # share of what is tested on that training may have had
LEFT_OUT = len(SPLITS)  # added to the split of a patient of whom nothing was used


@dataclass
class Overlap:
    """How many of some images or studies a model was trained or validated on.

    Attributes:
        images: all of them.
        by: for each kind of key of :class:`Seen`, which of them, ``[images] bool``.
        what: they are called.
    """

    images: int
    by: dict[str, np.ndarray]
    what: str = "images"

    @property
    def rows(self) -> np.ndarray:
        """Which of the images, by any key: ``[images] bool``."""
        return np.logical_or.reduce([np.zeros(self.images, bool), *self.by.values()])

    @property
    def share(self) -> float:
        """Of the images; 0 if there are none."""
        return float(self.rows.mean()) if self.images else 0.0

    def as_dict(self) -> dict:
        """For ``metrics.json``: how many images, and how many by each kind of key."""
        each = {kind: int(rows.sum()) for kind, rows in self.by.items()}
        return {self.what: int(self.rows.sum()), "share": self.share, **each}

    def describe(self, names: Sequence[str]) -> str:
        """In words, with the first of ``names`` that is one of them; blank if none is."""
        if not (count := int(self.rows.sum())):
            return ""
        each = [f"{int(rows.sum())} {WAYS.get(kind, f'by {kind}')}" for kind, rows in self.by.items() if rows.any()]
        return (
            f"the model was trained or validated on {count} of these {self.images} {self.what} ({self.share:.0%}): "
            f"{', '.join(each)}; the first is {names[int(self.rows.argmax())]}"
        )

    def refuse_most(self, split: str, names: Sequence[str], allowed: bool, what: str, source: str = "") -> None:
        """Raise a ConfigError if most of what is to be tested on is what the model was trained on.

        Args:
            split: ``train`` and ``val`` are asked for by who wants them.
            names: as for :meth:`describe`.
            allowed: it is wanted.
            what: would flatter: ``"metrics"`` or ``"scores"``.
            source: name of the table, where ``names`` do not tell.
        """
        if allowed or split not in ("test", "all") or self.share <= MOST_SEEN:
            return
        where = f"split: {source}: " if source else "split: "
        raise ConfigError(
            f"{where}{self.describe(names)}; {what} on these flatter. Give data that it has not seen; if this is "
            "wanted, or the same ids are other patients here, give allow_training_patients"
        )


class SplitTable(Protocol):
    """A table of labels or studies: a patient and a split a row, and how the splits came about."""

    patients: Sequence[str]
    splits: Sequence[str]
    origin: dict


@dataclass
class Seen:
    """What training, validation and test took of a table of labels or studies.

    Attributes:
        salt: what the manifest is known by; goes into the hashes of patients of earlier releases.
        keys: by kind, ``[N] int64``, sorted: hashes of patient ids and of stored pixels; and ``near``, ``[N, 64]
            uint8``, sorted too: signatures of films.
        places: by kind, ``[N] uint8``: the number of the split in ``SPLITS``, plus ``LEFT_OUT`` for a patient of whom
            no image was used (a label fraction, or unreadable files).
        origin: how the splits were drawn: hashes of the patients and of the splits given, rule, seed, shares. Empty in
            records of earlier releases.
        key: with which hashes of patients are made; ``None`` where it stayed with the run, or there is none.
    """

    salt: str
    keys: dict[str, np.ndarray]
    places: dict[str, np.ndarray]
    origin: dict = field(default_factory=dict)
    key: bytes | None = field(default=None, repr=False)

    @property
    def knows_patients(self) -> bool:
        """Patients can be looked up: their hashes are of an earlier release, or the key is there."""
        return fits(self.origin, self.key)

    def is_of(self, given: str) -> bool:
        """Whether splits were given like this, by their :func:`.splits.patients_hash`, in the manifest it is of."""
        return is_same(self.origin, "given", given, self.key) if self.origin else self.salt == given

    def _patient_keys(self, names: Sequence[str]) -> np.ndarray:
        plain = self.key is None or "key" not in self.origin
        found = [patient_key(name, self.salt) if plain else keyed_patient(name, self.key) for name in names]
        return np.array(found, np.int64)

    @classmethod
    def of(
        cls,
        whole: SplitTable,
        used: SplitTable | None = None,
        hashes: Sequence[str] = (),
        thumbnails: np.ndarray | None = None,
        key: bytes | None = None,
    ) -> Seen:
        """Of a table with its splits, and of the images that were used.

        Args:
            whole: every patient, also those of whom nothing is used.
            used: rows of it; all by default.
            hashes: of their stored pixels, blank where not known.
            thumbnails: ``[N, 48, 48] uint8``, of :func:`hdxray_fast.images.perceptual_hash.equalised_thumbnail`.
            key: of the run (:func:`.seen_key.run_key`); left out, one that is in nobody's hands once this is gone.
        """
        key = key or secrets.token_bytes(32)
        origin = sealed({"given": "", **whole.origin}, key)
        used_patients = set((used or whole).patients)
        split_of = dict(zip(whole.patients, whole.splits, strict=True))
        patients = {
            keyed_patient(patient, key): SPLITS.index(split) + (0 if patient in used_patients else LEFT_OUT)
            for patient, split in split_of.items()
        }
        told = zip(hashes, (used or whole).splits if hashes else [], strict=True)
        pixels = {pixel_key(text): SPLITS.index(split) for text, split in told if text}
        found = {"patients": _sorted(patients), "pixels": _sorted(pixels)}
        if thumbnails is not None:
            found[NEAR] = _signed(thumbnails, (used or whole).splits)
        keys, places = ({kind: one[part] for kind, one in found.items()} for part in (0, 1))
        return cls(origin["given"], keys, places, origin, key)

    @classmethod
    def of_origin(cls, origin: dict, key: bytes | None = None) -> Seen:
        """Of a model whose record was removed: how its splits were drawn, and nobody."""
        empty = {kind: _sorted({}) for kind in KINDS}
        keys, places = ({kind: one[part] for kind, one in empty.items()} for part in (0, 1))
        return cls(origin.get("given", ""), keys, places, dict(origin), key)

    def splits_of(self, patients: Sequence[str]) -> dict[str, str]:
        """The split that each patient was in; those who were in none are left out, or all without the key."""
        names = list(dict.fromkeys(patients))
        row, known = self._find("patients", self._patient_keys(names))
        places = self.places["patients"]
        return {name: SPLITS[places[at] % LEFT_OUT] for name, at, there in zip(names, row, known, strict=True) if there}

    @property
    def limits(self) -> str:
        """What cannot be told, in words; blank where nothing is amiss."""
        told = []
        if not self.knows_patients:
            told.append(
                f"the {KEY_FILE} of its run is not beside it: whether it was trained on these patients cannot be told; "
                "pixels are compared"
            )
        if NEAR not in self.keys and len(self.keys["pixels"]):
            told.append(
                "its record of what it was trained on has no signatures of films (one of an earlier release has none): "
                "equal pixels are compared, near duplicates are not"
            )
        return "; ".join(told)

    def taught(self, kind: str, names: Sequence[str]) -> np.ndarray:
        """Which of ``names`` training or validation used, ``[N] bool``.

        Args:
            kind: ``"patients"`` or ``"pixels"``.
            names: ids of patients, or hashes of stored pixels; a blank one is of nothing.
        """
        if kind == "patients":
            keys = self._patient_keys(names)
        else:
            keys = np.array([pixel_key(name) if name else 0 for name in names], np.int64)
        row, known = self._find(kind, keys)
        if not len(self.keys[kind]):
            return known
        return known & (self.places[kind][row] < SPLITS.index("test")) & np.array([bool(name) for name in names], bool)

    def near(self, thumbnails: np.ndarray) -> np.ndarray:
        """Which films look like one that training or validation used, ``[N] bool``, for thumbnails ``[N, 48, 48]``."""
        return found_among(thumbnails, self.keys[NEAR][self.places[NEAR] < SPLITS.index("test")])

    def overlap(
        self,
        patients: Sequence[str] | None,
        hashes: Sequence[str] | None = None,
        thumbnails: np.ndarray | None = None,
        what: str = "images",
    ) -> Overlap:
        """How many of some images (or ``what``) training or validation used: by patients, by pixels and by their look,
        each where it is given and can be told. What is equal to the pixel is not counted as near, too."""
        ask = patients is not None and self.knows_patients
        by = {"patients": self.taught("patients", patients)} if ask else {}
        if hashes is not None:
            by["pixels"] = self.taught("pixels", hashes)
        if thumbnails is not None and NEAR in self.keys:
            equal = by.get("pixels", np.zeros(len(thumbnails), bool))
            by[NEAR] = np.zeros(len(thumbnails), bool)
            by[NEAR][~equal] = self.near(thumbnails[~equal])
        given = next((len(one) for one in (patients, hashes, thumbnails) if one is not None), 0)
        return Overlap(given, by, what)

    def _find(self, kind: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the record, and whether the keys are there."""
        have = self.keys[kind]
        if not len(have):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        row = np.minimum(np.searchsorted(have, keys), len(have) - 1)
        return row, have[row] == keys

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all; a ConfigError if it cannot be written."""
        import torch  # commands are listed without it

        tensors = {f"{kind}.keys": torch.from_numpy(keys) for kind, keys in self.keys.items()}
        tensors |= {f"{kind}.places": torch.from_numpy(places) for kind, places in self.places.items()}
        try:
            with written_whole(path) as temporary:
                told = json.dumps(self.origin, sort_keys=True) if self.origin else self.salt
                save_tensors(tensors, temporary, {FORMAT: told})  # one entry: their order is not fixed
        except OSError as error:
            raise ConfigError(f"out: cannot write {path} ({error.strerror or error})") from error

    @classmethod
    def load(cls, path: Path, needs_key: bool = False) -> Seen | None:
        """The record in a file, ``None`` if there is no such file; a CheckpointError if it is damaged, or lacks a key
        that it cannot do without."""
        from safetensors import SafetensorError, safe_open

        if not os.path.lexists(path):
            return None
        try:
            check_tensors(path)
            with safe_open(path, "np") as file:
                metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: is damaged or cannot be read ({reason_of(error)}); remove it to go without"
            ) from error
        kinds = [name.removesuffix(".keys") for name in tensors if name.endswith(".keys")]
        if FORMAT not in metadata or not set(KINDS) <= set(kinds):
            raise CheckpointError(f"{path}: is no record of patients and pixels; remove it to go without")
        keys, places = ({kind: tensors[f"{kind}.{part}"] for kind in kinds} for part in ("keys", "places"))
        told = metadata[FORMAT]
        try:
            origin = parse_json(told) if told.startswith("{") else {}
        except ValueError as error:
            raise CheckpointError(f"{path}: is damaged ({error}); remove it to go without") from error
        found = cls(origin.get("given", "") if origin else told, keys, places, origin, key_of(path))
        if needs_key and not found.knows_patients:
            raise CheckpointError(
                f"{path.with_name(KEY_FILE)}: is missing or another run's, and {path.name} cannot be read without it; "
                "put it back"
            )
        return found


def patient_key(patient: str, salt: str) -> int:
    """64 bits of a hash of an id, as in records of earlier releases."""
    digest = hashlib.sha256(f"{salt}\0{patient}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def keyed_patient(patient: str, key: bytes) -> int:
    """64 bits that only who has the key can compute of an id."""
    return int.from_bytes(keyed(patient, key)[:8], "little", signed=True)


def pixel_key(text: str) -> int:
    """64 bits of the hash of an image's stored pixels, as hexadecimal digits."""
    return int.from_bytes(bytes.fromhex(text[:16].rjust(16, "0")), "little", signed=True)


def _signed(thumbnails: np.ndarray, splits: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Signatures in an order that says nothing of the images', and their places."""
    signatures = film_signature(thumbnails)
    order = np.lexsort(signatures.T[::-1])
    return signatures[order], np.array([SPLITS.index(splits[row]) for row in order], np.uint8)


def _sorted(places: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array(sorted(places), np.int64)
    return keys, np.array([places[int(key)] for key in keys], np.uint8)
