"""Pictures of features: one scale of colours for all, smooth, and flagged where there may be no chest."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.data.radiographs import read_radiograph
from hdxray_fast.features.feature_pictures import _Seen, _well_inside
from hdxray_fast.features.patch_features import PatchFeatures, PrincipalComponents, patch_features
from hdxray_fast.features.position_features import Film
from hdxray_fast.images.feature_panels import colours_over, heat_over, smooth
from hdxray_fast.models.inputs import as_batch


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    net = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
    return hx.create_encoder("vit_tiny_patch16", **net).eval()


@pytest.fixture
def folder(tmp_path):
    """A tall radiograph, a wide one, and a file that is none."""
    root = tmp_path / "xrays"
    root.mkdir()
    for name, shape in (("tall", (128, 64)), ("wide", (64, 128))):
        assert cv2.imwrite(str(root / f"{name}.png"), draw_radiograph(0, *shape))
    (root / "bad.png").write_bytes(b"no picture")
    return root


def of(encoder, path):
    return patch_features(encoder, as_batch([read_radiograph(str(path), "a", 64, 16, "rectangle")]), "valid")


def test_features_and_attention_are_the_encoders(encoder, folder):
    found = of(encoder, folder / "tall.png")
    radiograph = read_radiograph(str(folder / "tall.png"), "a", 64, 16, "rectangle")
    plan = hx.plan_all(torch.from_numpy(radiograph.valid))
    pixels = torch.from_numpy(radiograph.pixels)[None, None]
    assert found.ids.tolist() == plan.keep_ids.tolist()
    with torch.no_grad():
        tokens = encoder.encode(pixels, plan, radiograph.scale, radiograph.shift).values
        x = encoder._start(pixels, plan, radiograph.scale, radiograph.shift)[0]
        x = encoder.blocks[0](x, torch.tensor([0, len(x)], dtype=torch.int32), len(x), None, None, False)
        block = encoder.blocks[1]
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(-1, 3, 3, 8).unbind(1)
        attention = torch.einsum("hd,nhd->hn", q[0], k).mul(8**-0.5).softmax(-1).mean(0)
    np.testing.assert_allclose(found.values, tokens[1:], atol=2e-3)
    np.testing.assert_allclose(found.attention, attention[1:], rtol=1e-4)
    assert np.isnan(found.on_grid(found.attention)[:, 0]).all()  # padding


def test_likeness_is_one_to_itself_and_within_bounds(encoder, folder):
    found = of(encoder, folder / "wide.png")
    alike = found.similarity(3)
    assert alike[3] == pytest.approx(1, abs=1e-3) and np.abs(alike).max() <= 1.001 and alike.min() < 0


def test_components_are_those_of_all_features_together():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(600, 8)) * [9, 1, 5, 1, 1, 3, 1, 1] + 4).astype(np.float16)
    found = PrincipalComponents.of([rows[:100], rows[100:]])
    _, values, axes = np.linalg.svd(rows - rows.mean(0, dtype=np.float64), full_matrices=False)
    assert np.abs(np.einsum("kd,kd->k", found.axes, axes[:3])) == pytest.approx(np.ones(3), abs=1e-4)
    assert found.explained == pytest.approx(values[:3] ** 2 / (values**2).sum(), rel=1e-3)
    assert np.abs(found.axes).argmax(1).tolist() == [0, 2, 5] and (found.axes.max(1) > 0.9).all()
    shares = found.shares(rows)
    assert 0.008 < (shares[:, 0] == 0).mean() < 0.012 and shares.max() == 1  # 1 % beyond either end


def test_the_first_component_points_to_what_is_dark():
    rows = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float16) * np.float16(3)
    bright = PrincipalComponents.of([rows])
    along = (rows.astype(np.float32) - bright.mean) @ bright.axes[0]
    for dark, sign in ((along, 1), (-along, -1)):
        found = PrincipalComponents.of([rows[:100], rows[100:]], [dark[:100], dark[100:]])
        np.testing.assert_allclose(found.axes[0], sign * bright.axes[0], atol=1e-3)
        assert found.low[0] < 0 < found.high[0] and found.axes[1] == pytest.approx(bright.axes[1], abs=1e-3)


def test_a_constant_picture_has_components_that_are_no_nan():
    shares = PrincipalComponents.of([np.ones((9, 4), np.float16)]).shares(np.ones((9, 4), np.float16))
    assert np.isfinite(shares).all()


def test_smooth_values_do_not_mix_with_what_was_not_looked_at():
    grid = np.full((4, 4), np.nan, np.float32)
    grid[:, 2:] = 5.0
    values, known = smooth(grid, (64, 64))
    assert values[:, 32:] == pytest.approx(np.full((64, 32), 5.0), abs=0.05)
    assert (known[:, :20] == 0).all() and (known[:, 44:] == 1).all()
    grey = np.full((64, 64), 100, np.uint8)
    picture = colours_over(grey, np.repeat(grid[..., None] / 5, 3, axis=2))
    assert (picture[:, :20] == 35).all() and (picture[:, 44:] > 200).all()
    assert (heat_over(grey, grid, 0, 5)[:, 44:, 2] > 200).all()  # yellow


def test_a_ramp_is_smooth_at_canvas_resolution():
    values, _ = smooth(np.tile(np.arange(8, dtype=np.float32), (8, 1)), (128, 128))
    steps = np.diff(values[64, 16:112])
    assert (steps > 0).all() and steps.max() < 0.1  # a patch is 16 pixels


def test_pictures_of_a_folder(encoder, folder, tmp_path, capsys):
    hx.save_model(encoder, tmp_path / "model")
    out = tmp_path / "out"
    words = ["features", str(folder), "--weights", str(tmp_path / "model"), "--out", str(out), "--workers", "0"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "bad.png" in told.err and told.out.startswith("2 pictures in ")
    tall, wide = (cv2.imread(str(out / f"{name}.features.png")) for name in ("tall", "wide"))
    assert abs(tall.shape[1] - 4 * 32) < 16 and abs(wide.shape[1] - 4 * 64) < 16  # without padding
    assert tall.shape[0] > wide.shape[0]
    assert "bad.png" in (out / "unreadable.csv").read_text()
    assert f"listed in {out / 'unreadable.csv'}" in told.err
    (folder / "bad.png").unlink()
    assert main(words) == 0  # over its own pictures
    assert not (out / "unreadable.csv").exists()  # of the call before
    (folder / "bad.png").write_bytes(b"no picture")
    assert main([*words, "--at", "32", "32"]) == 2
    assert "holds what features drew in another call (other at); give another folder, or --force" in (
        capsys.readouterr().err
    )
    words.append("--force")
    assert main([*words, "--at", "5", "32"]) == 2  # in the padding of the tall one
    message = capsys.readouterr().err
    assert "--at: 5 32 lies outside of" in message and "tall.png" in message and "x from 16 to 47" in message
    assert main([*words, "--at", "5", "64"]) == 2
    assert "accepted are x and y from 0 to 63" in capsys.readouterr().err
    assert len(list(out.glob("*.png"))) == 2
    assert main([*words, "--at", "32", "32", "--most", "2"]) == 0
    assert capsys.readouterr().out.endswith("; 1 more were left out (--most)\n")


def test_the_patch_that_is_chosen_lies_well_inside_the_chest():
    """Near the lower edge of a contour is the abdomen, which stands out of every film."""
    inside = np.zeros((12, 12), bool)
    inside[2:11, 1:10] = True
    features = PatchFeatures(np.zeros((144, 4), np.float16), np.arange(144), (12, 12), None)
    film = Film(np.zeros((192, 192), np.uint8), (0, 0, 192, 192), 1.0, 0.0)
    seen = _Seen("a.png", False, "frontal", film, (), (), inside.ravel(), features)
    chosen = np.zeros((12, 12), bool)
    chosen[4:9, 3:8] = True
    assert np.array_equal(_well_inside(seen).reshape(12, 12), chosen)
    chosen[:] = False
    chosen[3:9, 3:9] = True  # of the film, where the contour is not to be relied on
    assert np.array_equal(_well_inside(replace(seen, flagged=True)).reshape(12, 12)[3:9, 3:9], chosen[3:9, 3:9])
    assert not _well_inside(replace(seen, flagged=True)).reshape(12, 12)[[0, 1, -1]].any()


def test_the_padding_of_patches_at_the_edge_is_left_out(encoder, tmp_path):
    assert cv2.imwrite(str(tmp_path / "x.png"), np.full((128, 72), 200, np.uint8) + draw_radiograph(0, 128, 72) // 8)
    done = hx.draw_features(tmp_path / "x.png", encoder, tmp_path / "out", at=(32, 32))  # no cross at the edge
    (place,) = done.pictures.values()
    picture = cv2.imread(str(place))
    assert picture.shape == (18 + 64 + 2 * 18, 4 * 36 + 3 * 2, 3)  # lines above, below; 36 px, gaps of 2
    film = picture[18:82, :36].astype(int)
    assert film[:, [0, -1]].std() > 0 and np.abs(film[:, 0] - film[:, 1]).max() < 120  # no black edge


@pytest.mark.parametrize("at", [200, "ab", (1,), (1.5, 2), (64, 0)], ids=str)
def test_a_place_is_two_numbers_on_the_canvas(encoder, folder, tmp_path, at):
    hx.draw_features(folder / "tall.png", encoder, tmp_path / "out", at=np.array([32, 32]))
    with pytest.raises(hx.ArgumentError, match=r"^at: got .*, accepted are x and y from 0 to 63"):
        hx.draw_features(folder / "tall.png", encoder, tmp_path / "out", at=at)


def test_what_may_be_no_chest_is_flagged(encoder, folder, monkeypatch):
    monkeypatch.setattr("hdxray_fast.data.radiographs.find_contour", _unsure(hx.find_contour))
    done = hx.draw_features(folder / "tall.png", encoder, folder / "out")
    assert done.flagged == [str(folder / "tall.png")]
    picture = cv2.imread(str(next(iter(done.pictures.values()))))
    words = picture[-36:-18].astype(int)
    assert (words[..., 2] - words[..., 0]).max() > 100  # orange


def _unsure(find):
    def found(*args, **options):
        from dataclasses import replace

        return replace(find(*args, **options), flagged=True)

    return found


def test_a_prepared_set_gives_the_pictures_of_its_files(encoder, folder, tmp_path, capsys):
    made = ["prepare", str(folder), "--out", str(tmp_path / "set"), "--img-size", "64", "--contour", "rectangle"]
    assert main([*made, "--view", "any", "--workers", "0"]) == 0
    done = hx.draw_features(tmp_path / "set", encoder, tmp_path / "a")
    files = hx.draw_features(folder, encoder, tmp_path / "b")
    assert sorted(path.name for path in done.pictures.values()) == ["tall.features.png", "wide.features.png"]
    for name in ("tall", "wide"):
        assert (tmp_path / "a" / f"{name}.features.png").read_bytes() == (
            tmp_path / "b" / f"{name}.features.png"
        ).read_bytes()
    assert len(files.quarantined) == 1
    with pytest.raises(hx.ConfigError, match=r"img_size: the data set in .* 64 pixels"):
        hx.draw_features(tmp_path / "set", encoder, tmp_path / "c", img_size=128)


def test_features_too_narrow_for_colours_are_refused():
    with pytest.raises(hx.ArgumentError, match="2 numbers have no 3 components"):
        PrincipalComponents.of([np.ones((4, 2), np.float16)])


def test_an_encoder_without_class_token_has_no_attention(folder, tmp_path):
    net = {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 3, "contour": "rectangle"}
    encoder = hx.create_encoder("vit_tiny_patch16", class_token=False, **net).eval()
    found = of(encoder, folder / "tall.png")
    assert isinstance(found, PatchFeatures) and found.attention is None
    done = hx.draw_features(folder / "tall.png", encoder, tmp_path / "out", at=(32, 32))
    assert abs(cv2.imread(str(next(iter(done.pictures.values())))).shape[1] - 3 * 32) < 12
