"""Boot profiles of any traces: merging is deterministic and bounded, joining is a union, files are read as written."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.hydrate.map import ROW
from castoff.hydrate.profile import BOOTS, Boot, ChunkId, Profile, merge
from castoff.hydrate.profile_file import decode_profile, encode_profile
from castoff.image.digest import Digest

IMAGE = Digest("f" * 64)
LAYERS = [Digest(letter * 64) for letter in "abc"]

chunks = st.builds(ChunkId, st.sampled_from(LAYERS), st.integers(0, 12))
boots = st.builds(
    Boot,
    st.integers(0, 5),
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.lists(chunks, min_size=1, max_size=12, unique=True).map(tuple),
)
profiles = st.lists(boots, max_size=2 * BOOTS).map(lambda found: Profile.of(IMAGE, found))


@given(st.lists(boots, min_size=1, max_size=BOOTS))
def test_merge_is_what_half_of_the_boots_used(found: list[Boot]) -> None:
    """Each chunk that at least half of the boots used, once, and no other."""
    merged = merge(found)
    counts = {chunk: sum(chunk in boot.chunks for boot in found) for boot in found for chunk in boot.chunks}
    assert len(set(merged)) == len(merged)
    assert set(merged) == {chunk for chunk, count in counts.items() if 2 * count >= len(found)}


@given(st.lists(boots, min_size=1, max_size=BOOTS), st.randoms(use_true_random=False))
def test_merge_does_not_depend_on_the_boots_order(found: list[Boot], random: object) -> None:
    """The same boots in another order merge to the same order of chunks."""
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merge(shuffled) == merge(found)


@given(boots, st.integers(1, BOOTS))
def test_boots_that_agree_keep_their_order(boot: Boot, times: int) -> None:
    """Of boots with one and the same trace, the merged order is the trace."""
    assert merge([boot] * times) == boot.chunks


@given(profiles, profiles, profiles)
def test_join_is_a_union(one: Profile, two: Profile, three: Profile) -> None:
    """In whatever order and however often profiles are exchanged, hosts agree, and the newest boots are kept."""
    assert one.join(two) == two.join(one)
    assert one.join(two).join(three) == one.join(two.join(three))
    assert one.join(one) == one
    assert one.join(two).join(one) == one.join(two)
    joined = one.join(two).boots
    assert len(joined) <= BOOTS
    dropped = {*one.boots, *two.boots} - set(joined)
    assert all(boot.recorded <= kept.recorded for boot in dropped for kept in joined)


@given(profiles)
def test_a_file_is_read_as_it_was_written(profile: Profile) -> None:
    """Encoding loses nothing and is the same each time."""
    data = encode_profile(profile)
    assert decode_profile(data, IMAGE) == profile
    assert encode_profile(decode_profile(data, IMAGE)) == data


@given(profiles, st.data())
def test_a_file_of_anything_is_refused_or_sound(profile: Profile, data: st.DataObject) -> None:
    """Whatever is changed in a file: it is refused as Invalid, or what it says keeps to the bounds of a profile."""
    tree = json.loads(encode_profile(profile))
    assume(tree["boots"])
    place = data.draw(st.sampled_from(["version", "image", "layers", "boots", "run", "recorded", "id", "truncate"]))
    odd = data.draw(st.sampled_from([None, -1, 0, 1, 2**26, 2**63, "", "sha256:zz", [], {}, 1.5, True]))
    if place == "run":
        runs = tree["boots"][0]["runs"]
        runs[data.draw(st.integers(0, len(runs) - 1))][data.draw(st.integers(0, 2))] = odd
    elif place in ("recorded", "id"):
        tree["boots"][0][place] = odd
    elif place != "truncate":
        tree[place] = odd
    text = json.dumps(tree).encode()
    try:
        found = decode_profile(text[: len(text) // 2] if place == "truncate" else text, IMAGE)
    except Invalid:
        return
    assert all(0 <= chunk.number < 1 << 26 for boot in found.boots for chunk in boot.chunks)
    assert all(len(set(boot.chunks)) == len(boot.chunks) > 0 for boot in found.boots)


def _table(rows: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array([(at, layer, 0, chunk) for at, (layer, chunk) in enumerate(rows)], dtype=ROW)


@given(profiles, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), unique=True))
def test_rows_are_the_profiles_chunks_in_its_order(profile: Profile, rows: list[tuple[int, int]]) -> None:
    """Of a machine's map exactly the rows that the profile names, in its order; others are left out."""
    found = profile.rows(_table(rows), LAYERS).tolist()
    there = [(LAYERS[layer], chunk) for layer, chunk in rows]
    assert [there[row] for row in found] == [
        (chunk.diff_id, chunk.number) for chunk in profile.chunks if (chunk.diff_id, chunk.number) in there
    ]


def test_rows_of_a_layer_that_is_stacked_twice() -> None:
    """The map may name either place of such a layer; the profile knows the layer only."""
    profile = Profile.of(IMAGE, [Boot(0, "0" * 16, (ChunkId(LAYERS[0], 7), ChunkId(LAYERS[1], 1)))])
    assert profile.rows(_table([(1, 1), (2, 7)]), [LAYERS[0], LAYERS[1], LAYERS[0]]).tolist() == [1, 0]
