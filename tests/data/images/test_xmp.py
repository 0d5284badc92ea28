"""XMP packets beside images: ours is read by exiv2, and one of another program keeps every byte of its own."""

from typing import Any

import pytest

from captionmill.data.images.xmp import Packet, new_packet, read_packet, with_description

TEXT = 'ein Hund läuft über 雪, "so" & <so>'
EDITED = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="uuid:1"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="3"
   darktable:xmp_version="5">
   <darktable:history>
    <rdf:Seq>
     <rdf:li darktable:num="0" darktable:operation="exposure" darktable:params="00"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DESCRIBED = EDITED.replace(
    b"   <darktable:history>",
    b"""   <dc:description xmlns:dc="http://purl.org/dc/elements/1.1/">
    <rdf:Alt><rdf:li xml:lang="x-default">Grandmother</rdf:li></rdf:Alt>
   </dc:description>
   <darktable:history>""",
)


def properties_of(packet: bytes) -> dict[str, str]:
    """What exiv2, which darktable and digiKam use, reads."""
    exiv2 = pytest.importorskip("exiv2")
    image: Any = exiv2.ImageFactory.open(packet)
    image.readMetadata()
    return {datum.key(): datum.toString() for datum in image.xmpData()}


def test_a_new_packet_is_read_by_exiv2_and_by_us() -> None:
    packet = new_packet(TEXT)
    assert properties_of(packet) == {
        "Xmp.dc.description": f'lang="x-default" {TEXT}',
        "Xmp.photoshop.CaptionWriter": "captionmill",
    }
    assert read_packet(packet) == Packet(TEXT, True, "")
    assert read_packet(new_packet("a\x01b")) == Packet("a\ufffdb", True, "")


@pytest.mark.parametrize("before", [EDITED, EDITED.replace(b"\n", b"\r\n"), EDITED.replace(b"uuid:1", b"")])
def test_a_packet_of_another_program_gets_the_description_and_keeps_all_else(before: bytes) -> None:
    first = with_description(before, TEXT)
    assert first is not None
    start = first.index(b"  <rdf:Description rdf:about", first.index(b"</rdf:Description>"))
    end = first.index(b"</rdf:Description>\n", start) + len(b"</rdf:Description>\n")
    assert first[:start] + first[end:] == before
    added = {"Xmp.dc.description": f'lang="x-default" {TEXT}', "Xmp.photoshop.CaptionWriter": "captionmill"}
    assert properties_of(first) == properties_of(before) | added
    second = with_description(first, "another")
    assert second is not None
    assert read_packet(second) == Packet("another", True, "uuid:1" if b"uuid:1" in before else "")
    assert with_description(second, TEXT) == first


def test_a_packet_with_very_much_padding_is_read_at_once() -> None:
    before = EDITED.replace(b" </rdf:RDF>", b" " * 300_000 + b"x</rdf:RDF>")
    found = with_description(before, TEXT)
    assert found is not None
    assert found.startswith(before[: before.index(b"</rdf:RDF>")])


def test_our_description_is_found_after_another_program_has_written_the_packet() -> None:
    exiv2 = pytest.importorskip("exiv2")
    image: Any = exiv2.ImageFactory.open(with_description(EDITED, "a dog"))
    image.readMetadata()
    image.xmpData()["Xmp.xmp.Rating"] = "5"
    image.writeMetadata()
    content = image.io()
    content.open()
    written = bytes(content.mmap())
    assert read_packet(written) == Packet("a dog", True, "")  # exiv2 leaves the subject out
    changed = with_description(written, "a cat & a dog")
    assert changed == written.replace(b">a dog</", b">a cat &amp; a dog</")


@pytest.mark.parametrize(
    "content",
    [
        DESCRIBED,
        DESCRIBED.replace(b">Grandmother<", b"><"),
        EDITED.replace(b'xmp:Rating="3"', b'xmlns:p="http://ns.adobe.com/photoshop/1.0/" p:CaptionWriter="me"'),
        EDITED[:-30],
        b"",
        b"a dog",
        b"<html/>",
        b'<?xml version="1.0" encoding="none"?><x/>',
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + EDITED.partition(b"?>\n")[2],
        EDITED.replace(b"UTF-8", b"UTF-16").decode().encode("utf-16"),
    ],
)
def test_what_somebody_described_or_is_no_packet_is_not_changed(content: bytes) -> None:
    assert with_description(content, TEXT) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_a_packet_with_a_document_type_is_none(encoding: str) -> None:
    text = new_packet("a dog").decode()
    start = f'<?xml version="1.0" encoding="{encoding}"?>'
    packet = text[text.index("<x:xmpmeta") : text.index("<?xpacket end")]
    read = read_packet((start + packet).encode(encoding))
    assert read is not None
    assert read.description == "a dog"
    assert read_packet((start + '<!DOCTYPE x [<!ENTITY a "aaaa">]>' + packet).encode(encoding)) is None
