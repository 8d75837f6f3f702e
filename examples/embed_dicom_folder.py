"""Embed a folder of DICOM files into a Parquet table, and find the images most alike.

    python examples/embed_dicom_folder.py --folder /data/dicom --out features.parquet

Started again it goes on where it stopped. Without `--folder` it takes the radiographs of the package pydicom-data.
Needs: pip install '.[dicom,train,embed]'  (and pydicom-data for the radiographs)
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import hdxray_fast as hx


def sample_folder(folder: Path) -> Path:
    """Two radiographs of the package pydicom-data, one of them twice, and a CT slice, which is no radiograph."""
    from pydicom.data import get_testdata_file

    for name in ("RG1_UNCI.dcm", "RG3_UNCI.dcm", "CT_small.dcm"):
        shutil.copy(get_testdata_file(name), folder / name)
    shutil.copy(folder / "RG1_UNCI.dcm", folder / "again.dcm")
    return folder


def main(
    folder: str | None = None,
    weights: str = "pretrained",
    out: str = "features.parquet",
    img_size: int | None = 512,
    workers: int = 0,
) -> np.ndarray:
    """Cosine similarity of each image to each other, ``[N, N]``."""
    encoder = hx.create_encoder(weights=weights, img_size=img_size)
    with tempfile.TemporaryDirectory() as samples:
        source = folder or sample_folder(Path(samples))
        done = hx.embed_files([source], out, encoder, pool="mean", workers=workers)
    print(f"{done.rows} rows of {done.width} numbers in {done.out}, {done.new} of them new")
    if done.unreadable:
        print(f"{done.unreadable} files are no radiographs; {done.unreadable_csv} says why")

    table = pq.read_table(done.out)
    features = np.stack(table["feature"].to_numpy(zero_copy_only=False))
    features = features - features.mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-6)
    alike = features @ features.T
    names = [Path(path).name for path in table["path"].to_pylist()]
    for row, name in enumerate(names):
        best = int(np.argmax(np.where(np.arange(len(names)) == row, -2.0, alike[row])))
        print(f"{name}: most like {names[best]} ({alike[row, best]:.3f})")
    return alike


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder of DICOM files (or PNG, JPEG, TIFF), searched recursively")
    parser.add_argument(
        "--weights",
        default="pretrained",
        help="model folder, or published weights; left out, the encoder of the package",
    )
    parser.add_argument("--img-size", type=int, default=512, help="canvas side, pixels; trained at 1280")
    parser.add_argument("--out", default="features.parquet")
    parser.add_argument("--workers", type=int, default=0, help="processes that read files; -1: one per core")
    main(**vars(parser.parse_args()))
