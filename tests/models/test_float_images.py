"""Float images are taken as they are: what makes them right, and what is said when they are not."""

from __future__ import annotations

import pickle
import warnings

import cv2
import numpy as np
import pytest
import torch
from toy_radiographs import draw_radiograph

import hdxray_fast as hx
from hdxray_fast.errors import ArgumentError, ArgumentTypeError

SIZES = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "mean", "contour": "rectangle"}


def encoder_of(**changes):
    torch.manual_seed(0)
    return hx.create_encoder("vit_tiny_patch16", **{**SIZES, **changes}).eval()


def picture(seed: int = 0) -> np.ndarray:
    return draw_radiograph(seed, 90, 70)


def canvases() -> torch.Tensor:
    return torch.from_numpy(np.stack([hx.read_canvas(picture(seed), size=64).pixels for seed in range(2)]))[:, None]


NORMALISATIONS = pytest.mark.parametrize("normalisation", ["per_image", (0.5, 0.25), (0.0, 1.0)], ids=str)


@NORMALISATIONS
@pytest.mark.parametrize("in_chans", [1, 3])
def test_normalised_floats_give_what_bytes_give(normalisation, in_chans):
    encoder = encoder_of(normalisation=normalisation, in_chans=in_chans)
    images = canvases().expand(-1, in_chans, -1, -1)
    ways = {
        "bytes": encoder.normalise(images),
        "16 bits": encoder.normalise((images.int() * 257).to(torch.uint16)),
        "to 1": encoder.normalise(images.float() / 255),
        "to 255": encoder.normalise(images.float(), white=255.0),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = encoder(images)
        for how, floats in ways.items():
            assert floats.dtype == torch.float32
            torch.testing.assert_close(encoder(floats), expected, rtol=1e-3, atol=1e-4, msg=how)


@NORMALISATIONS
def test_a_transform_prepares_what_embed_prepares(tmp_path, normalisation):
    PIL = pytest.importorskip("PIL.Image")
    encoder = encoder_of(normalisation=normalisation)
    grey = picture()
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    expected = hx.embed([str(tmp_path / "a.png")], encoder, keep="all").features
    transform = pickle.loads(pickle.dumps(encoder.transform()))
    given = {
        "path": tmp_path / "a.png",
        "PIL": PIL.fromarray(grey),
        "PIL in colour": PIL.fromarray(np.stack([grey] * 3, -1)),
        "array": grey,
        "tensor": torch.from_numpy(grey),
        "tensor [1, H, W]": torch.from_numpy(grey)[None],
        "floats": torch.from_numpy(grey).float() / 255,
    }
    for kind, one in given.items():
        pixels = transform(one)
        assert pixels.shape == (1, 64, 64), kind
        with torch.no_grad():
            found = encoder(pixels[None]).numpy()
        assert np.allclose(found, expected, rtol=1e-2, atol=2e-2), kind
        if kind != "path":
            assert np.allclose(hx.embed(one, encoder, keep="all").features, expected, rtol=1e-2, atol=2e-2), kind
            assert len(hx.embed([one, one], encoder, keep="all")) == 2
    assert "64" in repr(transform)


def test_a_transform_stands_in_compose():
    transform = encoder_of().transform()
    stack = [lambda image: image[:, ::-1].copy(), transform, lambda pixels: pixels * 1.0]
    out = picture()
    for step in stack:
        out = step(out)
    assert out.shape == (1, 64, 64) and out.dtype == torch.float32


WRONG = {
    "0 to 1": lambda x: x / 255,
    "0 to 255": lambda x: x,
    "-1024 to 1024": lambda x: x / 255 * 2048 - 1024,
    "-1 to 1000": lambda x: x * 4 - 1,
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("normalisation", ["per_image", (0.5, 0.25)], ids=str)
def test_a_wrong_range_is_said_once(how, normalisation):
    encoder = encoder_of(normalisation=normalisation)
    images = WRONG[how](canvases().float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(encoder.normalise(canvases()))  # right ones before do not hide it
    with pytest.warns(
        UserWarning, match="images: float values from .* this encoder was trained on .*normalise"
    ) as told:
        encoder(images)
    assert told[0].filename == __file__  # the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(images)


@NORMALISATIONS
def test_a_right_range_is_passed_over(normalisation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images in (canvases(), encoder_of(normalisation=normalisation).normalise(canvases())):
            encoder_of(normalisation=normalisation)(images)
        encoder_of(normalisation=normalisation)(torch.zeros(1, 1, 64, 64))


def test_nothing_is_looked_at_while_a_graph_is_made():
    encoder = encoder_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.compile(encoder, backend="eager", fullgraph=True)(torch.rand(1, 1, 64, 64))
        encoder.to("meta")(torch.rand(1, 1, 64, 64, device="meta"))


def test_bad_arguments_are_named():
    encoder = encoder_of()
    for dtype in (torch.int64, torch.bool, torch.float64):
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(ArgumentError, match=rf"^images: got dtype {name}, .*; images.to\(torch.uint8\) if"):
            encoder(torch.ones(1, 1, 64, 64, dtype=dtype))
    with pytest.raises(ArgumentError, match=r"^images: got dtype bool, accepted are integers and floats"):
        encoder.normalise(torch.ones(1, 1, 64, 64, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="images: got shape"):
        encoder.normalise(torch.rand(1, 1, 32, 32))
    with pytest.raises(ArgumentError, match="white: got 0"):
        encoder.normalise(torch.rand(1, 1, 64, 64), white=0)
    with pytest.raises(ArgumentTypeError, match="images: holds a dict"):
        encoder.transform()({})
    with pytest.raises(ArgumentTypeError, match="images: holds a dict"):
        hx.embed([{}], encoder)
    with pytest.raises(ArgumentError, match="img_size: the encoder takes 32 x 64"):
        encoder_of(img_size=(32, 64)).transform()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.int32, torch.int64])
def test_integers_of_few_bits_are_normalised_as_those_of_all(dtype):
    encoder, images = encoder_of(), canvases()
    expected = encoder.normalise(images)
    torch.testing.assert_close(encoder.normalise(images.to(dtype)), expected)
    if dtype != torch.int16:
        wide = (images.int() * 257).to(dtype)  # 16 bits, in PIL's mode I as int32
        torch.testing.assert_close(encoder.normalise(wide), expected, rtol=1e-3, atol=1e-4)


def test_integers_that_do_not_tell_white_are_asked_for_it():
    """Fixed mean and deviation are shares of white, and no film reaches the largest int64."""
    encoder, images = encoder_of(normalisation=(0.5, 0.25)), canvases()
    with pytest.raises(ArgumentError, match=r"^white: left out, and .*int64.* does not tell it"):
        encoder.normalise(images.long())
    torch.testing.assert_close(encoder.normalise(images.long(), white=255.0), encoder.normalise(images))
