"""XMP packets in files beside images: darktable, digiKam and immich read photo.jpg.xmp.

The description is `dc:description`, as inside an image (`data/images/description.py`); `photoshop:CaptionWriter`
records who wrote it. A packet of another program is not parsed and written again, which could lose what we do not know:
our element is added to its text, and every other byte stays. ISO 16684-1 allows several `rdf:Description` of one
subject.
"""

import re
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from captionmill.data.images.description import WRITER

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_LIMIT = 16_000_000  # bytes; an editor's history has a few hundred thousand

_PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="captionmill">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
{element} </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
_ELEMENT = f"""\
  <rdf:Description rdf:about={{about}}
    xmlns:rdf="{_RDF}"
    xmlns:dc="{_DC}"
    xmlns:photoshop="{_PHOTOSHOP}"
    photoshop:CaptionWriter="{WRITER}">
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{{text}}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
"""
_RDF_END = re.compile(r"</(?:[\w.-]+:)?RDF\s*>")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Packet:
    """What is known of a packet."""

    description: str | None
    """The description in the default language; None if there is none."""
    is_ours: bool
    """Whether it is signed as written by captionmill."""
    about: str
    """The subject that all properties are about, "" in most packets."""


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type, in whatever encoding: its entities could expand to gigabytes."""

    def doctype(self, *_: str | None) -> None:
        """Called where one begins."""
        raise ValueError("a document type")


def new_packet(text: str) -> bytes:
    """A packet with only the description `text`."""
    return _PACKET.format(element=_element(text, "")).encode()


def read_packet(content: bytes) -> Packet | None:
    """What is known of the packet `content`; None if it is not one."""
    if len(content) > _LIMIT:
        return None
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError):  # LookupError for an unknown encoding
        return None
    rdf = root if root.tag == f"{{{_RDF}}}RDF" else root.find(f"{{{_RDF}}}RDF")
    if rdf is None:
        return None
    about, writer, description = "", None, None
    for node in rdf.findall(f"{{{_RDF}}}Description"):
        about = about or node.get(f"{{{_RDF}}}about", "")
        writer = writer or node.get(f"{{{_PHOTOSHOP}}}CaptionWriter") or node.findtext(f"{{{_PHOTOSHOP}}}CaptionWriter")
        element = node.find(f"{{{_DC}}}description")
        if description is None:
            description = _element_text(element) if element is not None else node.get(f"{{{_DC}}}description")
    return Packet(description, writer == WRITER, about)


def with_description(content: bytes, text: str) -> bytes | None:
    """The packet `content` with the description `text`: added if it has none, and if its description is ours, replaced.

    None if that cannot be done without a change to anything else.
    """
    packet = read_packet(content)
    if packet is None:
        return None
    try:
        written = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if packet.description is None and not packet.is_ours:
        ends = list(_RDF_END.finditer(written))
        changed = ""
        if len(ends) == 1:
            before = written[: ends[0].start()].rstrip(" \t")
            changed = before + _element(text, packet.about) + written[len(before) :]
    elif packet.description is not None and packet.is_ours:
        before, changed = f">{_escaped(packet.description)}</", ""
        if written.count(before) == 1:
            changed = written.replace(before, f">{_escaped(text)}</")
    else:
        return None
    found = read_packet(changed.encode())
    return changed.encode() if found == Packet(packed_text(text), True, packet.about) else None


def _element(text: str, about: str) -> str:
    return _ELEMENT.format(about=quoteattr(about), text=_escaped(text))


def _escaped(text: str) -> str:
    return escape(packed_text(text))


def packed_text(text: str) -> str:
    """`text` as `read_packet` returns it: without spaces around it and characters that XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text).strip()


def _element_text(element: ElementTree.Element) -> str:
    items = element.findall(f".//{{{_RDF}}}li")
    default = [item for item in items if item.get(_LANGUAGE) == "x-default"]
    return str((default or items or [element])[0].text or "").strip()
