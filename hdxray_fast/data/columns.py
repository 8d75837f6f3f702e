"""The names that columns of manifests go by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PATH_COLUMNS = ("image", "path", "Path", "file", "filename", "image_path", "Image Index")
PATIENT_COLUMNS = ("patient", "patient_id", "PatientID", "Patient ID", "subject_id", "patientId")


def find_column(columns: Iterable[str], candidates: Sequence[str]) -> str | None:
    """The first of ``candidates`` among ``columns``; failing that, the first but for case and spaces around it."""
    present = list(columns)
    if (exact := next((name for name in candidates if name in present), None)) is not None:
        return exact
    plain: dict[str, str] = {}
    for name in present:
        plain.setdefault(str(name).strip().lower(), name)
    return next((plain[name.lower()] for name in candidates if name.lower() in plain), None)
