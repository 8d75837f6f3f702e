"""Pictures of a pre-training: few of many stay, and they tell of its beginning as well as of its end."""

from __future__ import annotations

from hdxray_fast.pretrain.reconstruction import prune_pictures


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
