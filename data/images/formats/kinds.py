"""Which files are images: by suffix while folders are searched, by their first bytes when they are read.

An image in a format that cannot be read has a row with its reason too, so its format must have a name.
"""

import codecs
import re
from pathlib import PurePosixPath
from typing import Literal

from captionmill.data.optional import missing_packages

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".hif"),
    *(".avif", ".jp2", ".j2k", ".psd", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".apng", ".jif", ".jps", ".pjpeg"),
    *(".jpf", ".jpx", ".jpc", ".j2c", ".dib", ".heics", ".heifs", ".avifs", ".pjp", ".jfi", ".insp", ".pns", ".btf"),
    *(".jph", ".jhc"),
)
"""Suffixes of the formats that are read."""
FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC, AVIF, JPEG 2000, PSD and PPM"
"""Names of the formats that are read."""
_HEIC_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")

_CAMERA_SUFFIXES = (
    ".3fr .ari .arq .arw .bay .cr2 .cr3 .crw .cs1 .dc2 .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq .k25 .kdc "
    ".mdc .mef .mfw .mos .mrw .nef .nksc .nrw .orf .ori .pef .ptx .pxn .raf .rdc .rw2 .rwl .rwz .sr2 .srf .srw .sti "
    ".x3f .x3i"
)
_OTHER_FORMATS = {
    "RAW": ".raw",
    "JPEG XL": ".jxl",
    "JPEG XR": ".jxr .wdp .hdp",
    "JPEG XS": ".jxs",
    "JPEG-LS": ".jls",
    "HEIF of H.264 (AVCI)": ".avci .avcs",
    "SVG": ".svg .svgz",
    "EPS": ".eps .epsf",
    "PSB": ".psb",
    "Illustrator": ".ai",
    "CorelDRAW": ".cdr .cpt",
    "Affinity": ".afphoto .afdesign",
    "Clip Studio": ".clip",
    "Procreate": ".procreate",
    "Paint.NET": ".pdn",
    "PaintShop": ".psp .pspimage",
    "OpenRaster": ".ora",
    "Sketch": ".sketch",
    "Krita": ".kra .krz",
    "XCF": ".xcf .xcfgz",
    "OpenEXR": ".exr .sxr .mxr",
    "DICOM": ".dcm .dicom",
    "FITS": ".fits .fit .fts",
    "a whole-slide image": ".svs .ndpi .mrxs .czi",
    "DDS": ".dds",
    "KTX": ".ktx .ktx2",
    "TGA": ".tga .icb .vda .vst",
    "PCX": ".pcx .dcx",
    "PICT": ".pict .pct",
    "Photo CD": ".pcd",
    "FlashPix": ".fpx",
    "QOI": ".qoi",
    "ICO": ".ico .cur .ani",
    "ICNS": ".icns",
    "WMF": ".wmf .emf .wmz .emz",
    "CGM": ".cgm",
    "DjVu": ".djvu .djv",
    "BPG": ".bpg",
    "FLIF": ".flif",
    "SGI": ".sgi .rgba",
    "Sun raster": ".ras",
    "Radiance HDR": ".hdr .rgbe .xyze",
    "PFM": ".pfm",
    "PAM": ".pam",
    "XBM": ".xbm",
    "XPM": ".xpm",
    "XWD": ".xwd",
    "WBMP": ".wbmp",
    "MNG": ".mng .jng",
    "IFF": ".iff .ilbm .lbm",
    "Cineon": ".dpx .cin",
}
_OTHER_SUFFIXES = {suffix: f"RAW ({suffix[1:].upper()})" for suffix in _CAMERA_SUFFIXES.split()} | {
    suffix: name for name, suffixes in _OTHER_FORMATS.items() for suffix in suffixes.split()
}
ALL_IMAGE_SUFFIXES = frozenset((*IMAGE_SUFFIXES, *_OTHER_SUFFIXES))
"""Suffixes of all files that are images to a person: each of them has a row."""

HEADER_BYTES = 1024  # enough to recognise any of the formats; an SVG may begin with comments

Family = Literal["AVIF", "HEIC"]
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIC_BRAND = re.compile(rb"he[iv][cxms]|mi[fa][f123]|msf1")

_TIFF_START = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")
_CAMERA_HEADERS = {
    rb"\x89PNG\r\n\x1a\n....CgBI": "a PNG of an iPhone app (CgBI)",
    rb"II\*\0....CR": "RAW (CR2)",
    rb"....ftypcrx ": "RAW (CR3)",
    rb"FUJIFILMCCD-RAW": "RAW (RAF)",
    rb"IIR[OS]|MMOR": "RAW (ORF)",
    rb"IIU\0": "RAW (RW2)",
    rb"FOVb": "RAW (X3F)",
    rb"II....HEAPCCDR": "RAW (CRW)",
    rb"\0MRM": "RAW (MRW)",
    rb"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
}
_OTHER_HEADERS = {
    rb"\xff\x0a": "JPEG XL",
    rb"(\s|<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE[^>]*>)*<svg[\s>]": "SVG",
    rb"8BPS\0\x02": "PSB",
    rb"%!PS|\xc5\xd0\xd3\xc6": "EPS",
    rb"%PDF": "PDF",
    rb"v/1\x01": "OpenEXR",
    rb"gimp xcf": "XCF",
    rb"II\xbc": "JPEG XR",
    rb".{128}DICM": "DICOM",
    rb"DDS ": "DDS",
    rb"qoif": "QOI",
    rb"icns": "ICNS",
    rb"AT&TFORM": "DjVu",
    rb"BPG\xfb": "BPG",
    rb"FLIF": "FLIF",
    rb"#\?(RADIANCE|RGBE)": "Radiance HDR",
    rb"P[fF]\s": "PFM",
    rb"P7\n": "PAM",
    rb"SIMPLE  = ": "FITS",
    rb"\0\0[\x01\x02]\0[^\0]\0": "ICO",
    rb"SDPX|XPDS": "Cineon",
    rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]": "PCX",
    rb"[\x8a\x8b][MJ]NG\r\n": "MNG",
    rb"....ftypavc[is]": "HEIF of H.264 (AVCI)",
}
_VIDEO_START = (
    rb"....(ftyp|moov|mdat|wide|free|skip|pnot)|RIFF....AVI |\x1aE\xdf\xa3|FLV\x01|0&\xb2u|\0\0\x01[\xba\xb3]"
    rb"|(.{4})?G.{187}(.{4})?G"  # MPEG's transport stream, in packets of 188 or 192 bytes
)
_VIDEO, _PAGE = "a video, not an image", "an HTML page, not an image; fetch it again"
_NO_IMAGES = {
    rb"version https://git-lfs\.github\.com/": "a Git LFS pointer instead of the image; run git lfs pull",
    rb"/annex/objects/|[./]*\.git/annex/objects/": "a git-annex pointer instead of the image; run git annex get",
    rb"(\s|<!--.*?-->|<\?xml.*?\?>)*<(?i:!doctype html|html|head|meta|body|title|script|center|div|h1|p)\b": _PAGE,
    _VIDEO_START: _VIDEO,
    rb"\s*[{\[]\s*[\"\]}{\[]": "JSON, not an image; fetch it again",
    rb"RIFF....WAVE|ID3|fLaC|OggS": "a sound file, not an image",
    rb"\0\x05\x16[\0\x07]": "a Mac's AppleDouble file, which holds no image",
}
"""What is found instead of an image, whatever its suffix."""
_NO_KNOWN_IMAGES = {
    rb"PK(\x03\x04|\x05\x06)|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ": "an archive, not an image; unpack it",
    rb"\s*<(\?xml|Error)": "XML, not an image; fetch it again",
    rb"\0+\Z": "begins with zeros only; copy it again",
}
"""What it may be instead, unless its suffix is that of a format that begins so."""
_SUB_IFDS_TAG, _PHOTOMETRIC_TAG, _DNG_TAG = 0x014A, 0x0106, 0xC612
_SENSOR_PHOTOMETRIC = (32803, 34892)  # colour filter array, linear raw (DNG 1.7, PhotometricInterpretation)
_MOST_SUB_IFDS = 16


def has_read_suffix(name: str) -> bool:
    """Whether images with the suffix of `name` can be read here: those in HEIC need an extra."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES and not (suffix in _HEIC_SUFFIXES and missing_packages("pillow_heif"))


def family_of(header: bytes) -> Family | None:
    """HEIC or AVIF, by the brands with which such a file begins (ISO/IEC 14496-12, 4.3); None for any other file."""
    if header[4:8] != b"ftyp":
        return None
    end = min(len(header), int.from_bytes(header[:4], "big"))
    brands = [header[8:12], *(header[start : start + 4] for start in range(16, end, 4))]
    if not _AVIF_BRANDS.isdisjoint(brands):
        return "AVIF"
    return "HEIC" if any(map(_HEIC_BRAND.fullmatch, brands)) else None


def is_camera_header(header: bytes) -> bool:
    """Whether a file that begins with `header` is surely an image, in a format of cameras that cannot be read."""
    return _match(header, _CAMERA_HEADERS) is not None


def why_not_read(data: bytes, name: str, *, is_known: bool) -> str | None:
    """Why what is in `data` cannot be read as an image, by its content and the suffix of `name`; None if it may be one.

    `is_known` is whether it begins as an image that can be read.
    """
    header = data[:HEADER_BYTES]
    if found := _unsupported_format(data, name, is_known=is_known):
        return f"{found} is not supported; convert it to JPEG or PNG"
    return None if is_known else _match(header, _NO_IMAGES) or _match(header, _NO_KNOWN_IMAGES)


def _unsupported_format(data: bytes, name: str, *, is_known: bool) -> str | None:
    """The name of the format of an image that cannot be read; None if it can be, or is no image.

    Most cameras write TIFFs whose first image is a thumbnail: these must not be taken for images in TIFF.
    """
    header = data[:HEADER_BYTES]
    by_suffix = _OTHER_SUFFIXES.get(PurePosixPath(name).suffix.lower())
    if found := _match(header, _CAMERA_HEADERS):
        return found
    if header.startswith(_TIFF_START):
        if by_suffix is not None and by_suffix.startswith("RAW"):
            return by_suffix
        return "RAW (a camera's TIFF)" if _is_sensor_data(data) else None
    if is_known:
        return None
    return _match(header, _OTHER_HEADERS) or (None if _match(header, _NO_IMAGES) else by_suffix)


def _match(header: bytes, names: dict[bytes, str]) -> str | None:
    start = header.removeprefix(codecs.BOM_UTF8)
    return next((name for magic, name in names.items() if re.match(magic, start, re.DOTALL)), None)


def _is_sensor_data(tiff: bytes) -> bool:
    """Whether a TIFF holds what a camera's sensor recorded, in its first directory or in one below that."""
    entries = _read_directory(tiff, _number(tiff, 4, 4))
    if _DNG_TAG in entries:
        return True
    count, value = entries.get(_SUB_IFDS_TAG, (0, 0))
    starts = (
        [value] if count == 1 else [_number(tiff, value + 4 * place, 4) for place in range(min(count, _MOST_SUB_IFDS))]
    )
    directories = [entries, *(_read_directory(tiff, start) for start in starts)]
    return any(entry.get(_PHOTOMETRIC_TAG, (0, 0))[1] in _SENSOR_PHOTOMETRIC for entry in directories)


def _read_directory(tiff: bytes, start: int) -> dict[int, tuple[int, int]]:
    """The count and the value, or where the values are, of each tag (TIFF 6.0, section 2); empty for a BigTIFF."""
    if tiff[2:4] not in (b"*\0", b"\0*"):
        return {}
    places = range(start + 2, min(start + 2 + 12 * _number(tiff, start, 2), len(tiff) - 11), 12)
    return {
        _number(tiff, place, 2): (
            _number(tiff, place + 4, 4),
            _number(tiff, place + 8, 2 if _number(tiff, place + 2, 2) == 3 else 4),
        )
        for place in places
    }


def _number(tiff: bytes, start: int, size: int) -> int:
    return int.from_bytes(tiff[start : start + size], "little" if tiff.startswith(b"II") else "big")
