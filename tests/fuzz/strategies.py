# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated inputs: what is almost right, and what is nothing like it."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from lxml import etree

from .domains import OWN, REACHING, Part, domain_xml

# What leads out of where it belongs, what hides, what a screen or a shell would obey, and what is too much.
NASTY = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../outside/secret",
        "/outside/secret",
        "a/b",
        "-rf",
        "a\nb",
        "\x1b[2J",
        "\0",
        "%2e",
        "x" * 300,
        "é" * 100,
        "\udcff",
        "\ud800",
        "NaN",
    ]
)
NAMES = st.one_of(NASTY, st.text(max_size=40), st.text(st.characters(codec="ascii"), max_size=80))
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.floats(), NAMES, st.just([]), st.just({}), st.just({"a": 1})
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
NO_JSON = st.one_of(
    st.binary(max_size=60), st.sampled_from([b"", b"{", b"[" * 5000, b"1" * 5000, b'{"a": NaN}', b'{"a": 1e999}', b"\xff\xfe{}", b"null"])
)
_CHANGES = st.lists(st.tuples(st.sampled_from(["drop", "set", "set", "add"]), st.integers(0, 10_000), SCALARS, NAMES), max_size=4)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _changed(document: Any, changes: list[tuple[str, int, Any, str]]) -> bytes:
    made = json.loads(json.dumps(document))
    for what, number, template, name in changes:
        new = copy.deepcopy(template)
        places = list(_places(made))
        if not places:
            break
        container, key = places[number % len(places)]
        if what == "drop":
            del container[key]
        elif what == "set":
            container[key] = new
        elif isinstance(container, dict):
            container[name] = new
        else:
            container.append(new)
    return json.dumps(made).encode()


def documents(*likes: Any) -> st.SearchStrategy[bytes]:
    """JSON that is like one of some documents but for a few places, other JSON, and what is no JSON."""
    return st.one_of(
        st.builds(_changed, st.sampled_from(likes), _CHANGES),
        st.builds(_changed, st.sampled_from(likes), _CHANGES),
        st.builds(lambda value: json.dumps(value).encode(), JSON),
        NO_JSON,
    )


def _tree(parts: list[Part], changes: list[tuple[str, int, str, str]]) -> str:
    root = etree.fromstring(domain_xml(parts))
    for what, number, name, value in changes:
        elements = [one for one in root.iter() if isinstance(one.tag, str)]
        element = elements[number % len(elements)]
        parent = element.getparent()
        if what == "drop" and parent is not None:
            parent.remove(element)
        elif what == "twice" and parent is not None:
            parent.append(etree.fromstring(etree.tostring(element)))
        elif what == "text":
            element.text = value
        elif what == "bare":
            element.attrib.clear()
        elif what == "attribute":
            element.set(name, value)
        elif what == "tag":
            element.tag = name
    return etree.tostring(root, encoding="unicode")


_XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=20)
_TREE_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["drop", "drop", "twice", "text", "bare", "attribute", "tag"]),
        st.integers(0, 10_000),
        st.sampled_from(["type", "dev", "file", "name", "target", "source", "disk", "path", "mode", "id", "uuid", "os"]),
        st.sampled_from(["", "/outside/secret", "../x", "no", "vda", "9" * 30]) | _XML_TEXT,
    ),
    max_size=5,
)
XML = st.one_of(
    st.builds(_tree, st.lists(st.sampled_from(OWN + REACHING), max_size=5), _TREE_CHANGES),
    st.builds(_tree, st.lists(st.sampled_from(OWN + REACHING), max_size=5), _TREE_CHANGES),
    st.text(max_size=60),
    st.sampled_from(
        [
            "",
            "<a/>",
            "<domain/>",
            "<domain><devices/></domain>",
            "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
            "<a>" * 300,
        ]
    ),
)


def _header(fields: tuple[int, ...], rest: bytes, length: int) -> bytes:
    return (struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", *fields) + rest)[:length]


_BITS_32, _BITS_64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
# In the order of a header, from its version on.
_FIELDS = st.tuples(
    *(
        st.sampled_from([2, 3]) | _BITS_32,
        st.sampled_from([0, 512]) | _BITS_64,
        _BITS_32,
        st.integers(0, 30) | _BITS_32,
        _BITS_64,
        _BITS_32,
    ),
    *(_BITS_32, _BITS_64, _BITS_64, _BITS_32, _BITS_32, _BITS_64),
    *(st.sampled_from([0, 4]) | _BITS_64, _BITS_64, _BITS_64, st.integers(0, 8) | _BITS_32, _BITS_32),
)
HEADERS = st.one_of(
    st.builds(_header, _FIELDS, st.binary(max_size=30), st.integers(0, 200)), st.binary(max_size=120), st.just(b"QFI\xfb"), st.just(b"")
)
