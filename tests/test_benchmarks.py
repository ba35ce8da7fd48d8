"""Benchmarks load real images, in the order that was asked for, and refuse what is not theirs."""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_sample_images
from tiny import naive, tiny_plugin
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor
from torchvision.transforms.functional import to_pil_image

from avalanche_magd import benchmarks
from avalanche_magd.benchmarks import split_digits, split_fashion_mnist, split_image_folder


def classes_by_experience(benchmark: Any) -> list[set[int]]:
    return [set(exp.classes_in_this_experience) for exp in benchmark.train_stream]


def test_every_digit_is_in_one_experience() -> None:
    benchmark = split_digits(5, seed=1)
    streams = (benchmark.train_stream, benchmark.test_stream)
    assert [sum(len(exp.dataset) for exp in stream) for stream in streams] == [1347, 450]
    images = torch.stack([image for image, *_ in benchmark.train_stream[0].dataset])
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert all(len(classes) == 2 for classes in classes_by_experience(benchmark))
    assert set().union(*classes_by_experience(benchmark)) == set(range(10))


def test_the_class_order_follows_the_seed_or_the_fixed_order() -> None:
    assert classes_by_experience(split_digits(5, seed=1)) == classes_by_experience(
        split_digits(5, seed=1)
    )
    assert classes_by_experience(split_digits(5, seed=1)) != classes_by_experience(
        split_digits(5, seed=2)
    )
    order = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert classes_by_experience(split_digits(2, fixed_class_order=order)) == [
        {9, 8, 7, 6, 5},
        {4, 3, 2, 1, 0},
    ]


def test_each_experience_has_a_task_label_if_asked_for() -> None:
    tasks = [exp.task_label for exp in split_digits(5, return_task_id=True).train_stream]
    assert tasks == [0, 1, 2, 3, 4]


def test_what_avalanche_takes_beyond_the_documented_arguments_is_passed_on() -> None:
    def twice(image: Tensor) -> Tensor:
        return 2 * image

    options = {"seed": 0, "train_transform": twice, "class_ids_from_zero_from_first_exp": True}
    first, *_ = split_digits(5, **options).train_stream
    assert set(first.classes_in_this_experience) == {0, 1}
    assert max(image.max() for image, *_ in first.dataset) == 2
    assert max(image.max() for image, *_ in first.dataset.eval()) == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'sead'"):
        split_digits(5, sead=0)


def write_idx(file: Path, values: np.ndarray[Any, Any], packed: bool = False) -> str:
    """Write unsigned bytes as an IDX file; gives the digest of the plain content."""
    content = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    content += struct.pack(f">{values.ndim}i", *values.shape) + values.astype(np.uint8).tobytes()
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_whether_compressed_or_not(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(10 * 3 * 4).reshape(10, 3, 4)
    for name in benchmarks.FASHION_MNIST_FILES:
        values = images if "images" in name else np.arange(10)
        digest = write_idx(tmp_path / name, values, packed)
        monkeypatch.setitem(benchmarks.FASHION_MNIST_FILES, name, digest)
    benchmark = split_fashion_mnist(2, root=tmp_path, fixed_class_order=range(10), shuffle=False)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        samples = [sample for experience in stream for sample in experience.dataset]
        assert [label for _, label, *_ in samples] == list(range(10))
        read = torch.stack([image for image, *_ in samples])
        assert read.shape == (10, 1, 3, 4)
        torch.testing.assert_close(read.flatten(), torch.arange(120) / 255, rtol=0, atol=1e-7)


def test_a_folder_without_fashion_mnist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither train-images-idx3-ubyte nor"):
        split_fashion_mnist(root=tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_refused(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((1, 28, 28)), packed)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte in .* is damaged or not"):
        split_fashion_mnist(root=tmp_path)


@pytest.mark.skipif(
    not benchmarks.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_is_genuine() -> None:
    benchmark = split_fashion_mnist(5, images_per_class=100, seed=0)
    experience = benchmark.train_stream[0]
    assert len(experience.dataset) == 200
    assert sum(len(exp.dataset) for exp in benchmark.test_stream) == 10_000
    test_images = torch.stack([image for image, *_ in benchmark.test_stream[0].dataset])
    assert test_images.shape == (2000, 1, 28, 28)
    assert (test_images.min(), test_images.max()) == (0, 1)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of two colour photographs: sky, roof, petals, leaves."""
    root = tmp_path_factory.mktemp("photographs")
    china, flower = (torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images)
    corners = {"sky": (china, 0, 0), "roof": (china, 160, 200)}
    corners |= {"petals": (flower, 150, 250), "leaves": (flower, 0, 0)}
    for part, count in (("train", 12), ("test", 4)):
        for name, (photo, top, left) in corners.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                x = left + 6 * index + (3 if part == "test" else 0)
                to_pil_image(photo[:, top : top + 40, x : x + 48]).save(folder / f"{index}.png")
    return root


def test_an_image_folder_is_resized_to_squares_in_colour(photographs: Path) -> None:
    benchmark = split_image_folder(photographs, 2, image_size=32, seed=0)
    image, label, _ = benchmark.train_stream[0].dataset[0]
    assert image.shape == (3, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    assert label in benchmark.train_stream[0].classes_in_this_experience
    assert [len(exp.dataset) for exp in benchmark.train_stream] == [24, 24]
    assert [len(exp.dataset) for exp in benchmark.test_stream] == [8, 8]


def test_generated_colour_images_have_the_mean_colour_of_real_ones(photographs: Path) -> None:
    benchmark = split_image_folder(photographs, 2, image_size=32, seed=0)
    plugin = tiny_plugin(generator_iterations=120, num_inference_steps=5)
    strategy = naive([plugin], input_size=3 * 32 * 32)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert plugin.generator is not None
    images = plugin.generator.generate(8)
    assert images.shape == (8, 3, 32, 32)
    assert -1e-4 <= images.min() < images.max() <= 1 + 1e-4
    samples = [sample for exp in benchmark.train_stream for sample in exp.dataset]
    real = torch.stack([image for image, *_ in samples]).mean((0, 2, 3))
    generated = plugin.generator.generate(64).mean((0, 2, 3))
    # Red is not blue, neither in the photographs nor in what was generated from them.
    assert (real[0] - real[2]).abs() > 0.05
    torch.testing.assert_close(generated, real, atol=0.15, rtol=0)


def test_folders_of_another_layout_are_refused(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train is not a folder: expected .*<class>"):
        split_image_folder(tmp_path, 2, image_size=32)
    (tmp_path / "train").symlink_to(photographs / "train")
    for name in ("sky", "sea"):
        (tmp_path / "test" / name).mkdir(parents=True)
        to_pil_image(torch.rand(3, 8, 8)).save(tmp_path / "test" / name / "0.png")
    with pytest.raises(ValueError, match="have different classes"):
        split_image_folder(tmp_path, 2, image_size=32)
    with pytest.raises(ValueError, match="image_size must be at least 4"):
        split_image_folder(photographs, 2, image_size=1)


RAMP = np.array([[0, 16_384, 32_768, 65_535]] * 4)
GREYS = [0, 64, 128, 255]
"""The same in 8 bits."""


def folder_of(root: Path, extension: str, save: Callable[[Path], None]) -> Path:
    """A folder of images with two classes of one image each, which ``save`` writes."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            save(root / part / name / f"0.{extension}")
    return root


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def shown(root: Path, extension: str, save: Callable[[Path], None]) -> list[list[int]]:
    """RGB of the first row's pixels, of 4 × 4 pixels, as the benchmark gives them."""
    folder = folder_of(root, extension, save)
    image, *_ = split_image_folder(folder, 2, image_size=4).train_stream[0].dataset[0]
    assert image.shape == (3, 4, 4)
    assert image.dtype == torch.float32
    pixels: list[list[int]] = (image[:, 0].T * 255).round().int().tolist()
    return pixels


def tiff(
    pixels: np.ndarray[Any, Any], bits: int, sample_format: int = 1, photometric: int = 1
) -> bytes:
    """An uncompressed grey TIFF of one strip, in the byte order of its pixels."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 200)]
    tags += [(277, 1), (278, height), (279, pixels.nbytes), (339, sample_format)]
    content = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8)
    content += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        is_long = tag in (273, 279)
        kind, form = (4, "I") if is_long else (3, "Hxx")
        content += struct.pack(f"{order}HHI{form}", tag, kind, 1, value)
    return (content + bytes(4)).ljust(200, b"\0") + pixels.tobytes()


def png(pixels: np.ndarray[Any, Any], color_type: int, transparency: bytes = b"") -> bytes:
    """A PNG of 16 bits per channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    header += chunk(b"tRNS", transparency) if transparency else b""
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + end


DEEP: dict[str, tuple[str, bytes]] = {
    "PNG": ("png", png(RAMP, 0)),
    "TIFF": ("tif", tiff(RAMP.astype("<u2"), 16)),
    "TIFF, big-endian": ("tif", tiff(RAMP.astype(">u2"), 16)),
    "TIFF, white is zero": ("tif", tiff((65_535 - RAMP).astype("<u2"), 16, 1, 0)),
    "TIFF, floating-point": ("tif", tiff((RAMP / 65_535).astype("<f4"), 32, 3)),
    "PGM": ("pgm", b"P5 4 4 65535\n" + RAMP.astype(">u2").tobytes()),
    "PGM of 12 bits": ("pgm", b"P5 4 4 4095\n" + (RAMP // 16).astype(">u2").tobytes()),
    "PNG in colour": ("png", png(np.stack([RAMP] * 3, -1), 2)),
}


@pytest.mark.parametrize(("extension", "content"), DEEP.values(), ids=DEEP)
def test_images_of_more_than_8_bits_are_scaled(
    tmp_path: Path, extension: str, content: bytes
) -> None:
    pixels = shown(tmp_path, extension, partial(write, content=content))
    assert pixels == [[value] * 3 for value in GREYS]


def test_a_tiff_of_12_bits_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    values = np.array([[0, 1024, 2048, 4095]] * 4)
    packed = np.array(
        [[a >> 4, (a & 15) << 4 | b >> 8, b & 255] for row in values for a, b in row.reshape(2, 2)]
    )
    content = tiff(packed.astype(np.uint8).reshape(4, 6), 12)
    content = content.replace(
        struct.pack("<HHIHxx", 256, 3, 1, 6), struct.pack("<HHIHxx", 256, 3, 1, 4)
    )
    pixels = shown(tmp_path, "tif", partial(write, content=content))
    assert pixels == [[value] * 3 for value in GREYS]


@pytest.mark.parametrize(
    ("dtype", "factor", "sample_format"),
    [("<i4", 1, 2), ("<u4", 1, 1), ("<i2", 0.25, 2), ("<f4", 1 / 256, 3), ("<f4", np.nan, 3)],
)
def test_images_whose_range_is_not_known_are_refused_at_once(
    tmp_path: Path, dtype: str, factor: float, sample_format: int
) -> None:
    pixels = (RAMP * factor).astype(dtype)
    content = tiff(pixels, 8 * pixels.itemsize, sample_format)
    folder = folder_of(tmp_path, "tif", partial(write, content=content))
    with pytest.raises(ValueError, match=r"0.tif has grey values from .* Save it with unsigned"):
        split_image_folder(folder, 2, image_size=4)


HALF = [[255, 0, 0, 0], [255, 0, 0, 128], [0, 0, 0, 255], [0, 255, 0, 255]]
"""Red that cannot be seen, red half seen, black, green: RGBA."""
ON_WHITE = [[255, 255, 255], [255, 127, 127], [0, 0, 0], [0, 255, 0]]


def square(pixels: Any, mode: str) -> Image.Image:
    """4 × 4 pixels: each row is the same."""
    return Image.fromarray(np.array([pixels] * 4, dtype=np.uint8), mode)


def palette() -> Image.Image:
    image = square([0, 1, 2, 3], "P")
    image.putpalette([255, 0, 0, 255, 0, 0, 0, 0, 0, 0, 255, 0])
    return image


MODES: dict[str, tuple[str, Callable[[], Image.Image], dict[str, Any], list[list[int]]]] = {
    "RGBA": ("png", lambda: square(HALF, "RGBA"), {}, ON_WHITE),
    "RGBA, WebP": ("webp", lambda: square(HALF, "RGBA"), {"lossless": True}, ON_WHITE),
    "RGBA, TIFF": ("tif", lambda: square(HALF, "RGBA"), {}, ON_WHITE),
    "LA": (
        "png",
        lambda: square([[0, 0], [0, 128], [0, 255], [255, 255]], "LA"),
        {},
        [[255] * 3, [127] * 3, [0] * 3, [255] * 3],
    ),
    "P": ("png", palette, {}, [[255, 0, 0], *([255, 0, 0], [0, 0, 0], [0, 255, 0])]),
    "P, one colour transparent": (
        *("png", palette, {"transparency": 0}),
        [[255] * 3, [255, 0, 0], [0, 0, 0], [0, 255, 0]],
    ),
    "P, degrees": ("png", palette, {"transparency": bytes([0, 128, 255, 255])}, ON_WHITE),
    "L, one grey transparent": (
        *("png", lambda: square([0, 100, 200, 255], "L"), {"transparency": 100}),
        [[0] * 3, [255] * 3, [200] * 3, [255] * 3],
    ),
    "RGB, one colour transparent": (
        *("png", lambda: square([c[:3] for c in HALF], "RGB"), {"transparency": (0, 255, 0)}),
        [[255, 0, 0], [255, 0, 0], [0, 0, 0], [255, 255, 255]],
    ),
    "1": (
        *("png", lambda: square([0, 255, 0, 255], "L").convert("1"), {}),
        [[0] * 3, [255] * 3, [0] * 3, [255] * 3],
    ),
    "CMYK": (
        *(
            "tif",
            lambda: square([[0, 255, 255, 0], [0] * 4, [0, 0, 0, 255], [255, 0, 255, 0]], "CMYK"),
        ),
        *({}, [[255, 0, 0], [255] * 3, [0] * 3, [0, 255, 0]]),
    ),
    "CMYK, JPEG": (
        *("jpg", lambda: square([[0, 0, 0, 0]] * 4, "CMYK"), {"quality": 100}, [[255] * 3] * 4),
    ),
}


@pytest.mark.parametrize(("extension", "image", "options", "expected"), MODES.values(), ids=MODES)
def test_images_of_any_mode_are_what_a_viewer_shows(
    tmp_path: Path,
    extension: str,
    image: Callable[[], Image.Image],
    options: dict[str, Any],
    expected: list[list[int]],
) -> None:
    pixels = shown(tmp_path, extension, lambda file: image().save(file, **options))
    assert pixels == expected


def test_a_transparent_grey_of_16_bits_is_white(tmp_path: Path) -> None:
    content = png(RAMP, 0, struct.pack(">H", 32_768))
    pixels = shown(tmp_path, "png", partial(write, content=content))
    assert pixels == [[0] * 3, [64] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_images_of_8_bits_are_read_as_torchvision_reads_them(
    tmp_path: Path, mode: str, extension: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    folder = folder_of(tmp_path, extension, lambda file: image.save(file))
    read, *_ = split_image_folder(folder, 2, image_size=8).train_stream[0].dataset[0]
    theirs, _ = ImageFolder(str(folder / "train"), ToTensor())[0]
    assert torch.equal(read, theirs)


def test_a_damaged_image_is_refused_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "png", partial(write, content=b"no image"))
    with pytest.raises(UnidentifiedImageError, match=r"cannot identify .*0\.png"):
        split_image_folder(folder, 2, image_size=4)
