"""Pictures of a pre-training: few of many stay, and they tell of its beginning as well as of its end."""

from __future__ import annotations

import pytest
from tiny_training import TINY_PRETRAINING

from hdxray_fast.pretrain import task
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.reconstruction import prune_pictures
from hdxray_fast.training.checkpoints import checkpoint_folders

pytestmark = pytest.mark.usefixtures("two_blocks")


def left(folder) -> list[int]:
    return sorted(int(path.stem[5:]) for path in folder.glob("step_*.png"))


def test_the_newest_stay_and_the_first_from_each_power_of_two_on(tmp_path):
    for step in range(7, 1001, 7):
        (tmp_path / f"step_{step:08d}.png").touch()
        prune_pictures(tmp_path, keep=3)
        assert len(left(tmp_path)) <= 3 + step.bit_length()
    assert left(tmp_path) == [7, 14, 21, 35, 70, 133, 259, 518, 980, 987, 994]


def test_pictures_of_ones_own_and_all_of_them_where_nothing_is_to_go(tmp_path):
    names = ["step_00000003_mine.png", "notes.txt", "step_x.png", *(f"step_{step:08d}.png" for step in (4, 5, 6))]
    for name in names:
        (tmp_path / name).touch()
    prune_pictures(tmp_path, keep=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    prune_pictures(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(names) - {"step_00000005.png"})


@pytest.mark.parametrize("fails", ["a folder that is none", "reading", "drawing"])
def test_a_picture_that_cannot_be_made_costs_no_checkpoint(radiographs, tmp_path, monkeypatch, fails):
    def no(*_, **__):
        raise RuntimeError(fails)

    out = tmp_path / "run"
    options = {**TINY_PRETRAINING, "ratio_inside": 0.8, "ratio_outside": 0.6, "picture_every": None, "resume": "never"}
    config = PretrainConfig(data=str(radiographs), out=str(out), steps=2, save_every=1, **options)
    if fails == "reading":
        monkeypatch.setattr(task, "planned", no)
    elif fails == "drawing":
        monkeypatch.setattr(task, "reconstruction_picture", no)
    begun = (lambda line: (out / "pictures").write_text("")) if fails == "a folder that is none" else None
    with pytest.warns(UserWarning, match=r"pictures/step_0000000\d.png: left out, it cannot be made \(\w+: ") as told:
        done = task.run_pretraining(config, progress=False, on_step=begun)
    assert len([one for one in told if "left out" in str(one.message)]) == 2
    assert done.finished and done.picture is None and (out / "model").is_dir()
    assert [path.name for path in checkpoint_folders(out / "checkpoints")] == ["step_00000001", "step_00000002"]
