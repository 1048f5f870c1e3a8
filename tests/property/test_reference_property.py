"""References, for any text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import CastoffError
from castoff.image.reference import RegistryReference, parse_reference

COMPONENT = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOST = st.from_regex(r"([a-z0-9]{1,6}\.[a-z]{2,4}|localhost|127\.0\.0\.1|\[::1\])(:[1-9][0-9]{0,3})?", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGEST = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@st.composite
def references(draw: st.DrawFn) -> str:
    """Any reference that Docker would read."""
    host = draw(st.none() | HOST)
    path = "/".join(draw(st.lists(COMPONENT, min_size=1, max_size=3)))
    if host is None and "." in path.partition("/")[0]:
        host = "docker.io"  # else the first component would be read as a host
    tag, digest = draw(st.none() | TAG), draw(st.none() | DIGEST)
    return (f"{host}/" if host else "") + path + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


@given(references())
def test_a_good_reference_survives_its_own_text(text: str) -> None:
    """What is printed is read again as the same, and says everything: no default is left to apply."""
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert parse_reference(str(reference)) == reference
    assert reference.tag or reference.digest


@given(st.text(max_size=300) | st.text(alphabet="aA0/:@.-_[]~\0 \n", max_size=40) | references().map(lambda text: text + "\n"))
def test_any_text_is_a_reference_or_one_clear_line(text: str) -> None:
    """Never another exception; and what is accepted is stable."""
    try:
        reference = parse_reference(text)
    except CastoffError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
    else:
        assert parse_reference(str(reference)) == reference


@given(st.text(alphabet="abc:/@.", max_size=30), st.sampled_from(["oci", "oci-archive", "docker-archive"]))
def test_any_path_is_a_reference_or_one_clear_line(text: str, kind: str) -> None:
    """The same for images on disk."""
    try:
        reference = parse_reference(f"{kind}:{text}")
    except CastoffError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert str(reference).startswith(f"{kind}:")
