"""NIfTI and DICOM: values, spacing, orientation, and that a patient's name never leaves a file."""

import gzip
import io
import logging
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nonesuch as ns
from nonesuch.data import formats
from nonesuch.data.formats import Picture
from nonesuch.data.formats._anatomy import turned

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

from nonesuch.data.formats import dicom, nifti  # noqa: E402

RNG = np.random.default_rng(0)
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"  # those in the package; none is fetched
PHI = ("Zyx^Patient", "1943-11-07", "MRN-778811", "Secret Hospital", "zyxdescrip", "zyxaux")


def written(array: np.ndarray, affine: np.ndarray | None = None, packed: bool = False, **header: Any) -> bytes:
    """A NIfTI file by nibabel; slope and inter are planted in the header, as scanners' converters do."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    image.header.set_xyzt_units(header.pop("units", "mm"))
    raw = bytearray(image.to_bytes())
    if header:
        struct.pack_into("<2f", raw, 112, header.pop("slope"), header.pop("inter"))
    return gzip.compress(bytes(raw), mtime=0) if packed else bytes(raw)


def upright(array: np.ndarray) -> np.ndarray:
    """The array of an image in nibabel's canonical orientation, (right, front, head), as ours: (head, back, left)."""
    return array[::-1, ::-1].transpose(2, 1, 0)


# -- NIfTI


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "int64"])
def test_nifti_values_and_spacing_come_back(dtype: str, packed: bool) -> None:
    array = (RNG.normal(size=(4, 5, 6)) * 100).astype(dtype)
    data = written(array, np.diag([0.7, 0.8, 2.5, 1]), packed)
    picture = formats.read(data, "a.nii")
    assert picture.axes == "dhw"
    assert picture.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert picture.values.dtype == dtype
    np.testing.assert_array_equal(picture.values[0], upright(array))
    assert formats.head(data).size == (6, 5, 4)
    again, suffix = formats.encode(picture)
    image = nibabel.Nifti1Image.from_bytes(again)
    assert suffix == ".nii"
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.diag(image.affine), [0.7, 0.8, 2.5, 1], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    assert image.get_data_dtype() == dtype
    assert image.header.get_xyzt_units()[0] == "mm"
    assert gzip.decompress(formats.encode(picture, ".nii.gz")[0]) == again


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "ASR", "SPL", "PIR", "IRP"])
def test_any_orientation_is_the_same_volume(codes: str) -> None:
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    reference = nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    move = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(reference.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    turned_image = reference.as_reoriented(move)
    assert nibabel.aff2axcodes(turned_image.affine) == tuple(codes)
    picture = formats.read(turned_image.to_bytes(), codes)
    np.testing.assert_array_equal(picture.values[0], upright(array))
    assert picture.spacing == pytest.approx((3, 2, 1))
    assert bool(picture.remarks) == (codes != "LPS")
    canonical = nibabel.as_closest_canonical(turned_image)
    np.testing.assert_array_equal(upright(np.asarray(canonical.dataobj)), picture.values[0])


def test_an_oblique_volume_is_turned_to_the_nearest_axes() -> None:
    array = RNG.integers(0, 100, (3, 4, 5)).astype(np.uint8)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 3.0, 4.0])
    picture = formats.read(written(array, affine))
    np.testing.assert_array_equal(picture.values[0], upright(array))
    assert picture.spacing == pytest.approx((4, 3, 2), rel=1e-6)


def test_directions_that_are_none_leave_a_volume_alone() -> None:
    values = RNG.normal(size=(1, 2, 3, 4))
    for directions in (np.full((3, 3), np.nan), np.zeros((3, 3)), np.ones((3, 3))):
        out, spacing, changed = turned(values, directions, (1.0, 2.0, 3.0))
        assert not changed
        assert out is values
        assert spacing == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter", "becomes"),
    [
        ("int16", 1, 0, "int16"),
        ("int16", 0, 5, "int16"),  # slope 0 means: not rescaled
        ("uint8", 1, -1024, "int16"),
        ("uint16", 1, -1024, "int32"),
        ("int16", 2, 1, "int32"),
        ("int16", 0.5, 0, "float32"),
        ("int32", 100, 0, "float32"),
        ("float32", 2, 1, "float32"),
        ("float64", 2, 1, "float32"),
    ],
)
def test_rescaled_integers_stay_integers_where_they_can(dtype: str, slope: float, inter: float, becomes: str) -> None:
    array = RNG.integers(0, 200, (3, 4, 5)).astype(dtype)
    data = written(array, slope=slope, inter=inter)
    picture = formats.read(data)
    assert str(picture.values.dtype) == becomes == formats.head(data).dtype
    reference = nibabel.Nifti1Image.from_bytes(data).get_fdata()  # nibabel's own rescaling
    np.testing.assert_allclose(picture.values[0], upright(reference), rtol=1e-6)


def test_a_fourth_axis_is_channels_and_a_flat_volume_an_image() -> None:
    four = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    picture = formats.read(written(four))
    for c in range(3):
        np.testing.assert_array_equal(picture.values[c], upright(four[..., c]))
    back = np.asarray(nibabel.Nifti1Image.from_bytes(formats.encode(picture, ".nii")[0]).dataobj)
    np.testing.assert_array_equal(back, four)
    colour = np.zeros((4, 5, 6), dtype=[(c, "u1") for c in "RGB"])
    for i, c in enumerate("RGB"):
        colour[c] = four[..., i]
    np.testing.assert_array_equal(formats.read(written(colour)).values, picture.values)
    flat = RNG.integers(0, 99, (4, 5, 1)).astype(np.int16)
    picture = formats.read(written(flat, np.diag([2.0, 3.0, 9.0, 1.0])))
    assert (picture.axes, picture.spacing) == ("hw", pytest.approx((3, 2)))
    np.testing.assert_array_equal(picture.values[0], flat[::-1, ::-1, 0].T)
    again = formats.read(formats.encode(picture, ".nii")[0])
    np.testing.assert_array_equal(again.values, picture.values)
    assert (again.axes, again.spacing) == ("hw", picture.spacing)


def test_big_endian_metres_and_the_second_version() -> None:
    array = RNG.integers(0, 999, (3, 4, 5)).astype(">i2")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    data = nibabel.Nifti1Image(array, np.diag([0.001, 0.002, 0.003, 1]), header).to_bytes()
    picture = formats.read(data)
    assert picture.values.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(picture.values[0], upright(array))
    picture = formats.read(written(array.astype("<i2"), np.diag([0.001, 0.002, 0.003, 1]), units="meter"))
    assert picture.spacing == pytest.approx((3, 2, 1), rel=1e-6)
    second = nibabel.Nifti2Image(array.astype("<i2"), np.eye(4)).to_bytes()
    np.testing.assert_array_equal(formats.read(gzip.compress(second)).values[0], upright(array))


def test_nifti_is_known_by_its_content() -> None:
    data = written(np.zeros((2, 3, 4), np.uint8))
    assert nifti.knows(data[:512])
    assert nifti.knows(gzip.compress(data)[:512])
    assert not nifti.knows(gzip.compress(b"a tar of pictures" * 99)[:512])
    assert not nifti.knows(b"\x1f\x8b")
    assert not nifti.knows(b"")


def refused(data: bytes) -> str:
    """The sentence that refuses a file."""
    with pytest.raises(ValueError, match=r"^a\.x .*\.$") as caught:
        formats.read(data, "a.x")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_or_refused(data: bytes) -> str:
    """What a file, damaged somewhere, is read as, or the sentence that refuses it: anything else is raised."""
    try:
        return repr(formats.read(data, "a.x"))
    except ValueError as error:
        return str(error) if str(error).startswith("a.x ") else pytest.fail(f"it is refused with {error}")


def test_a_compressed_bomb_is_refused_from_its_header() -> None:
    import tracemalloc

    raw = bytearray(written(np.zeros((2, 2, 2), np.uint8)))
    struct.pack_into("<8h", raw, 40, 3, 20000, 20000, 4, 1, 1, 1, 1)  # 1.6 Gi voxels
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(bytes(raw)) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < 100_000
    small = gzip.compress(written(np.zeros((2, 2, 2), np.uint8)) + bytes(64 << 20))  # says little, holds much: left where it is
    tracemalloc.start()
    assert "too many" in refused(bomb)
    assert formats.read(small).values.shape == (1, 2, 2, 2)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_damaged_nifti_is_refused_in_a_sentence() -> None:
    data = written(RNG.integers(0, 255, (4, 5, 6)).astype(np.uint8))
    assert "cut short" in refused(data[:-1])
    assert "cut short" in refused(data[:400])
    refused(data[:200])
    packed = gzip.compress(data)
    for cut in (len(packed) - 1, len(packed) - 9, 60, 20):
        refused(packed[:cut])
    broken = bytearray(packed)
    broken[-6] ^= 1  # the checksum
    assert "CRC" in refused(bytes(broken))
    assert "pair" in refused(data[:344] + b"ni1\0" + data[348:])
    assert "complex" in refused(written(np.zeros((2, 2, 2), np.complex64)))
    assert "not a volume" in refused(written(np.zeros((2, 2, 2, 3, 2), np.uint8)))
    for at, value in (
        (108, struct.pack("<f", np.nan)),
        (108, struct.pack("<f", 1e9)),
        (40, struct.pack("<h", 9)),
        (70, b"\x05\x05"),
    ):
        refused(data[:at] + value + data[at + len(value) :])
    assert "NaN" in refused(written(np.full((2, 2, 2), np.nan, np.float32)))
    for at in range(0, 348, 3):  # a byte of the header changed: read or refused, never anything else
        mutated = bytearray(data)
        mutated[at] ^= 0xFF
        read_or_refused(bytes(mutated))


def test_an_absent_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in (("nibabel", written(np.zeros((2, 2, 2), np.uint8))), ("pydicom", (SHIPPED / "CT_small.dcm").read_bytes())):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert "pip install 'nonesuch[medical]'" in refused(data)


# -- DICOM


def dataset(array: np.ndarray, **tags: Any) -> Any:
    """An image of a made-up patient."""
    from pydicom.dataset import Dataset, FileMetaDataset

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.PatientName, made.PatientBirthDate, made.PatientID, made.InstitutionName = PHI[0], "19431107", PHI[2], PHI[3]
    made.PatientComments = f"{PHI[1]} {PHI[4]}"
    made.Rows, made.Columns = array.shape[-2:] if array.ndim < 4 else array.shape[1:3]
    made.SamplesPerPixel = array.shape[-1] if array.ndim == 4 else 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = array.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(array.dtype.kind == "i")
    made.PixelData = array.tobytes()
    if array.ndim > 2:
        made.NumberOfFrames = len(array)
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def file_of(made: Any) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def shipped(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(SHIPPED / name, force=True)


READ_BY_PYDICOM = """
    693_J2KI CT_small ExplVR_BigEnd J2K_pixelrep_mismatch JPEG2000 MR_small MR_small_RLE MR_small_bigendian MR_small_implicit
    MR_small_jp2klossless MR_small_padded SC_jpeg_no_color_transform SC_rgb_dcmtk_+eb+cr SC_rgb_dcmtk_+eb+cy+n1 SC_rgb_gdcm_KY
    SC_rgb_dcmtk_+eb+cy+np SC_rgb_jpeg_dcmd SC_rgb_rle SC_rgb_rle_16bit SC_rgb_rle_16bit_2frame SC_rgb_rle_32bit SC_rgb_small_odd
    SC_ybr_full_422_uncompressed examples_jpeg2k examples_overlay examples_rgb_color examples_ybr_color image_dfl rtdose
    rtdose_rle
""".split()


@pytest.mark.parametrize("name", READ_BY_PYDICOM)
def test_values_are_pydicoms(name: str) -> None:
    picture, head = formats.read(SHIPPED / f"{name}.dcm"), formats.head(SHIPPED / f"{name}.dcm")
    assert (head.axes, head.size, head.channels) == (picture.axes, picture.values.shape[1:], len(picture.values))
    assert head.dtype == str(picture.values.dtype)
    reference = shipped(f"{name}.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.pixel_array
    if "RescaleSlope" in reference:
        expected = expected * float(reference.RescaleSlope) + float(reference.RescaleIntercept)
    elif "DoseGridScaling" in reference:
        expected = expected * float(reference.DoseGridScaling)
    values = np.moveaxis(picture.values, 0, -1) if reference.SamplesPerPixel == 3 else picture.values[0]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    if "PixelSpacing" in reference and name != "SC_rgb_rle_16bit_2frame":  # which does not say how far apart its frames are
        assert picture.spacing is not None
        assert picture.spacing[-2:] == pytest.approx(tuple(map(float, reference.PixelSpacing)))
    assert (picture.unit == "HU") == (reference.get("Modality") == "CT")


def test_the_compressions_pydicom_leaves_out() -> None:
    plain = formats.read(SHIPPED / "MR_small.dcm").values
    np.testing.assert_array_equal(formats.read(SHIPPED / "MR_small_jpeg_ls_lossless.dcm").values, plain)
    colour = formats.read(SHIPPED / "SC_rgb_rle.dcm").values
    np.testing.assert_array_equal(formats.read(SHIPPED / "SC_rgb_jpeg_gdcm.dcm").values, colour)  # lossless JPEG
    near = formats.read(SHIPPED / "SC_rgb_jls_lossy_line.dcm").values
    assert np.abs(near.astype(int) - colour).max() <= 10
    twelve = formats.read(SHIPPED / "JPEG-lossy.dcm").values.astype(float)
    assert np.corrcoef(twelve.ravel(), formats.read(SHIPPED / "JPEG2000.dcm").values.ravel())[0, 1] > 0.9
    assert formats.head(SHIPPED / "JPEG-lossy.dcm").lossy
    assert not formats.head(SHIPPED / "MR_small_jpeg_ls_lossless.dcm").lossy
    made = shipped("MR_small_jpeg_ls_lossless.dcm")
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    assert "HTJ2K" in refused(file_of(made))


def test_palettes_and_single_bits() -> None:
    from pydicom.pixels.processing import apply_color_lut

    reference = shipped("examples_palette.dcm")
    picture = formats.read(SHIPPED / "examples_palette.dcm")
    np.testing.assert_array_equal(np.moveaxis(picture.values, 0, -1), apply_color_lut(reference.pixel_array, reference))
    bits = formats.read(SHIPPED / "liver_1frame.dcm").values
    np.testing.assert_array_equal(bits[0], shipped("liver_1frame.dcm").pixel_array * 255)


def test_monochrome1_is_inverted_before_it_is_rescaled() -> None:
    array = RNG.integers(0, 4096, (5, 6)).astype(np.uint16)
    made = dataset(array, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    picture = formats.read(file_of(made))
    np.testing.assert_array_equal(picture.values[0], 4095 - array)
    assert any("MONOCHROME1" in remark for remark in picture.remarks)
    made.RescaleSlope, made.RescaleIntercept = 2, -10
    np.testing.assert_array_equal(formats.read(file_of(made)).values[0], (4095 - array.astype(int)) * 2 - 10)
    signed = RNG.integers(-100, 100, (5, 6)).astype(np.int16)
    picture = formats.read(file_of(dataset(signed, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(picture.values[0], -1 - signed)


def test_text_burned_into_pixels_is_remarked_on() -> None:
    made = dataset(np.zeros((5, 6), np.uint8), BurnedInAnnotation="YES")
    assert any("burned" in remark for remark in formats.read(file_of(made)).remarks)


def slices(volume: np.ndarray, row: list[float], column: list[float], gap: float, **tags: Any) -> list[bytes]:
    """A series of the slices volume[k] (rows, columns), `gap` mm apart along row x column."""
    uid, normal = pydicom.uid.generate_uid(), np.cross(row, column)
    return [
        file_of(
            dataset(
                one,
                SeriesInstanceUID=uid,
                ImageOrientationPatient=[*row, *column],
                ImagePositionPatient=[round(float(v), 6) for v in np.array([3.0, -7.0, 11.0]) + k * gap * normal],
                PixelSpacing=[0.5, 0.25],  # between rows, between columns
                Modality="CT",
                RescaleSlope=1,
                RescaleIntercept=-1024,
                **tags,
            )
        )
        for k, one in enumerate(volume)
    ]


def joined(files: list[bytes]) -> Picture:
    assert dicom.FORMAT.join is not None
    return dicom.FORMAT.join([io.BytesIO(f) for f in files])


def named(data: bytes) -> str:
    assert dicom.FORMAT.series is not None
    return dicom.FORMAT.series(io.BytesIO(data))


def test_a_series_is_sorted_along_its_normal() -> None:
    volume = RNG.integers(0, 2000, (7, 5, 4)).astype(np.uint16)
    files = slices(volume, [1, 0, 0], [0, 1, 0], 2.5)
    order = RNG.permutation(7)
    picture = joined([files[i] for i in order])
    np.testing.assert_array_equal(picture.values[0], volume.astype(int) - 1024)  # axial, from feet to head: it stays
    assert picture.spacing == pytest.approx((2.5, 0.5, 0.25))
    assert (picture.axes, picture.unit, picture.remarks) == ("dhw", "HU", ())
    np.testing.assert_array_equal(joined(files[::-1]).values, picture.values)
    missing = joined([files[i] for i in (0, 1, 2, 5, 6)])
    assert any("apart" in remark for remark in missing.remarks)


def test_a_sagittal_series_and_nifti_of_it_are_the_same_volume() -> None:
    volume = RNG.integers(0, 2000, (3, 5, 4)).astype(np.uint16)
    files = slices(volume, [0, 1, 0], [0, 0, -1], 4.0)  # rows to the back, columns to the feet: slices to the right
    picture = joined(files[::-1])
    assert picture.spacing == pytest.approx((0.5, 0.25, 4.0))
    np.testing.assert_array_equal(picture.values[0] + 1024, volume[::-1, ::-1, :].transpose(1, 2, 0))
    lps = np.array([[0, 0, -4.0], [0.25, 0, 0], [0, -0.5, 0]])  # of (column, row, slice), as a converter writes it
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ lps
    same = formats.read(written(volume.transpose(2, 1, 0).astype(np.int16), affine))
    np.testing.assert_array_equal(same.values - 1024, picture.values)
    assert same.spacing == pytest.approx(picture.spacing)


def test_series_are_told_apart_and_carry_no_identifier() -> None:
    volume = RNG.integers(0, 2000, (3, 5, 4)).astype(np.uint16)
    one, other = slices(volume, [1, 0, 0], [0, 1, 0], 1.0), slices(volume, [1, 0, 0], [0, 1, 0], 1.0)
    assert len({named(f) for f in one}) == 1
    assert named(one[0]) != named(other[0])
    uid = pydicom.dcmread(io.BytesIO(one[0])).SeriesInstanceUID
    assert uid not in named(one[0])
    echoes = slices(volume, [1, 0, 0], [0, 1, 0], 1.0, EchoNumbers=2)
    assert named(echoes[0]) != named(one[0])
    alone = [file_of(dataset(volume[0], SeriesInstanceUID="1.2.3")) for _ in range(2)]
    assert named(alone[0]) != named(alone[1])
    with pytest.raises(ValueError, match="same place"):
        joined([*one, one[0]])
    with pytest.raises(ValueError, match="differ in size"):
        joined([one[0], *slices(volume[:, :3], [1, 0, 0], [0, 1, 0], 1.0)])
    with pytest.raises(ValueError, match="different directions"):
        joined([one[0], *slices(volume, [0, 1, 0], [0, 0, -1], 1.0)])


def test_an_enhanced_file_holds_a_volume_and_a_cine_a_clip() -> None:
    from pydicom.dataset import Dataset

    def item(**tags: Any) -> Dataset:
        made = Dataset()
        for name, value in tags.items():
            setattr(made, name, value)
        return made

    volume = RNG.integers(0, 2000, (4, 5, 6)).astype(np.uint16)
    places = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3 * k])]) for k in (2, 0, 3, 1)]
    for k, place in enumerate(places):
        place.PixelValueTransformationSequence = [item(RescaleSlope=1, RescaleIntercept=k)]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25])],
    )
    data = file_of(dataset(volume, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=places))
    picture = formats.read(data)
    expected = volume.astype(int) + np.arange(4)[:, None, None]
    np.testing.assert_array_equal(picture.values[0], expected[[1, 3, 0, 2]])
    assert (picture.axes, picture.spacing) == ("dhw", pytest.approx((3, 0.5, 0.25)))
    clip = formats.read(file_of(dataset(volume, FrameTime=40)))
    assert (clip.axes, clip.spacing) == ("thw", pytest.approx((0.04, 1, 1)))
    np.testing.assert_array_equal(clip.values[0], volume)


def test_a_damaged_dicom_is_refused_without_quoting_it(caplog: pytest.LogCaptureFixture) -> None:
    data = file_of(dataset(RNG.integers(0, 999, (16, 16)).astype(np.uint16), PixelSpacing=[0.125, 0.125]))
    for cut in (len(data) - 1, len(data) - 300, 400, 140, 132):
        refused(data[:cut])
    for name in ("rtplan", "rtstruct", "test-SR", "waveform_ecg", "MR_truncated", "GDCMJ2K_TextGBR", "badVR"):
        refused((SHIPPED / f"{name}.dcm").read_bytes())
    rng = np.random.default_rng(1)
    for name in ("MR_small_jp2klossless", "SC_rgb_jpeg_gdcm", "SC_rgb_dcmtk_+eb+cr", "MR_small_RLE", "CT_small"):
        whole = (SHIPPED / f"{name}.dcm").read_bytes()
        for _ in range(12):
            mutated = bytearray(whole)
            for at in rng.integers(0, len(whole), 20):
                mutated[at] = rng.integers(256)
            read_or_refused(bytes(mutated))
    bad = data.replace(b"0.125\\0.125", b"Zyx^Patient")  # a name where numbers belong
    assert bad != data
    assert "Zyx" not in read_or_refused(bad)
    assert caplog.text == ""  # pydicom logs what it cannot read
    assert logging.getLogger("pydicom").propagate


def test_a_dicom_bomb_is_refused() -> None:
    made = dataset(np.zeros((4, 4), np.uint8))
    made.Rows = made.Columns = 60000
    made.NumberOfFrames = 9
    assert "cannot be read" in refused(file_of(made))
    import imagecodecs
    from pydicom.encaps import encapsulate

    made = dataset(np.zeros((4, 4), np.uint8))
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"
    made.PixelData = encapsulate([imagecodecs.jpegls_encode(np.zeros((2000, 2000), np.uint8))])  # says 4 x 4 outside
    made["PixelData"].is_undefined_length = True
    assert "another size" in refused(file_of(made))
    stream = imagecodecs.jpegls_encode(np.zeros((4, 4), np.uint8))
    made.PixelData = encapsulate([stream[:-2] + b"\x07\x08"])  # without its end the decoder would spin
    made["PixelData"].is_undefined_length = True
    assert "cut short" in refused(file_of(made))
    made = dataset(np.zeros((4, 4), np.uint8))
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    whole = file_of(made)
    meta = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(80)) + packer.flush()
    assert "inflate" in refused(whole[:meta] + bomb)


def test_no_word_of_a_file_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        data = file_of(dataset(np.zeros((4, 4), np.uint8)))
        kept = repr(formats.read(data)) + repr(formats.head(data)) + named(data)
        image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
        image.header["descrip"], image.header["aux_file"] = PHI[4], PHI[5]
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", " ".join(PHI).encode()))
        picture = formats.read(image.to_bytes())
        kept += repr(picture) + repr(formats.head(image.to_bytes())) + formats.encode(picture, ".nii")[0].decode("latin1")
    assert not [word for word in (*PHI, "19431107") if word in kept + caplog.text]


# -- end to end


def subject(age: float, sex: str, rng: np.random.Generator, side: int = 8) -> np.ndarray:
    """A ball in a made-up head, (x, y, z): as bright as its owner is old, on the left of women and the right of men."""
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    centre = np.array([side * (0.27 if sex == "F" else 0.73), side / 2, side / 2])[:, None, None, None] - 0.5
    ball = ((grid - centre) ** 2).sum(0) < (0.3 * side) ** 2
    return (ball * (age * 10) + rng.normal(100, 5, (side,) * 3)).clip(0, 1000).astype(np.int16)


def folder_of_volumes(root: Path, n: int) -> None:
    """NIfTI volumes with a patient's words in every place that takes one, and a table of age and sex."""
    rng, rows = np.random.default_rng(3), ["file_name,age,sex"]
    for i in range(n):
        age, sex = float(rng.uniform(20, 80)), "FM"[i % 2]
        image = nibabel.Nifti1Image(subject(age, sex, rng), np.diag([1.5, 2.0, 3.0, 1.0]))
        image.header["descrip"], image.header["aux_file"], image.header["db_name"] = PHI[4], PHI[5], PHI[0]
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", " ".join(PHI).encode()))
        name = f"case{i:03d}.nii" + (".gz" if i % 3 == 0 else "")
        (root / name).write_bytes(gzip.compress(image.to_bytes()) if name.endswith("gz") else image.to_bytes())
        rows.append(f"{name},{age:.1f},{sex}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def test_a_planted_effect_is_learned_and_no_word_gets_out(tmp_path: Path) -> None:
    from nonesuch.data.pictures import save_images

    source, out = tmp_path / "volumes", tmp_path / "run"
    source.mkdir()
    folder_of_volumes(source, 96)
    data = ns.data.open(source)
    assert (data.spec.axes, data.spec.size, data.spec.channels, data.spec.dtype) == ("dhw", (8, 8, 8), 1, "int16")
    assert data.spec.spacing == pytest.approx((3.0, 2.0, 1.5))
    assert set(data.schema.columns) == {"age", "sex"}
    model = ns.fit("vae", data, given=["age", "sex"], preset="tiny", budget=1200, recipe={"batch": 8, "lr": 1e-2}, out=out)
    ages, sexes = [25.0, 40.0, 55.0, 70.0] * 4, ["F"] * 8 + ["M"] * 8
    given = model.schema.given(16, {"age": ages, "sex": sexes})
    save_images(model.sample(16, given, seeds=0), model.spec, model.schema, given, out / "samples", 0)
    files = sorted((out / "samples").rglob("*.nii*"))
    assert len(files) == 16
    found = {}
    for path in files:
        image = nibabel.load(path)
        np.testing.assert_allclose(image.header.get_zooms()[:3], (1.5, 2.0, 3.0), rtol=1e-6)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.get_data_dtype() == np.int16
        found[int(path.name.split(".")[0].split("-")[1])] = np.asarray(image.dataobj).astype(float)
    halves = {i: (v[:4].mean(), v[4:].mean()) for i, v in found.items()}  # x runs to the right
    side = ["F" if halves[i][0] > halves[i][1] else "M" for i in range(16)]
    assert sum(a == b for a, b in zip(side, sexes, strict=True)) >= 14
    bright = [float(np.sort(found[i].ravel())[-30:].mean()) for i in range(16)]
    assert np.corrcoef(bright, ages)[0, 1] > 0.5
    report = repr(data)
    for path in (p for p in out.rglob("*") if p.is_file()):
        report += path.read_bytes().decode("latin1")
    assert not [word for word in PHI if word in report]


@pytest.mark.slow
def test_a_report_of_volumes_carries_no_word(tmp_path: Path) -> None:
    source = tmp_path / "volumes"
    source.mkdir()
    folder_of_volumes(source, 40)
    data = ns.data.open(source)
    compared = ns.compare(data, budget=64, families=["vae"], given=["age", "sex"], baselines=False, limit=40, sample_seeds=1)
    compared.save(tmp_path / "report.html")
    said = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "vdvae" in said
    assert not [word for word in PHI if word in said]


def test_samples_of_dicom_carry_no_word(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    for i in range(6):
        folder = source / "FM"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        volume = RNG.integers(900, 1200, (8, 8, 8)).astype(np.uint16)
        for k, data in enumerate(slices(volume, [1, 0, 0], [0, 1, 0], 2.0)):
            (folder / f"scan{i}-{7 - k}.dcm").write_bytes(data)
    data = ns.data.open(source)
    assert (data.spec.axes, data.spec.size, len(data.train) + len(data.test)) == ("dhw", (8, 8, 8), 6)
    assert data.spec.spacing == pytest.approx((2.0, 0.5, 0.25))
    ns.fit("vae", data, preset="tiny", budget=32, recipe={"batch": 8}, out=tmp_path / "run")
    kept = repr(data.remarks) + "".join(p.read_bytes().decode("latin1") for p in (tmp_path / "run").rglob("*") if p.is_file())
    uid = pydicom.dcmread(next(source.rglob("*.dcm"))).SeriesInstanceUID
    assert not [word for word in (*PHI, "19431107", uid) if word in kept]
    assert torch.isfinite(data.train.x).all()
