"""Keys: how they are written, the host's own, whom a host trusts."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from artifacts import MINE, STRANGER
from castoff.artifact.keys import (
    KEY_PREFIX,
    HostKey,
    PublicKey,
    decode_signature,
    encode_signature,
    find_host_key,
    host_key,
    keys_directory,
)
from castoff.artifact.trust import distrust, load_trust, read_key, trust_key
from castoff.errors import CastoffError, Conflict, Invalid, NotFound, Unauthorized

P = 2**255 - 19


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Keys


def test_a_signature_is_written_in_one_way() -> None:
    """Spare bits, padding, another alphabet's letters and what is none are refused: whoever changes a byte is seen."""
    value = bytes(range(192, 256))
    text = encode_signature(value)
    assert decode_signature(text) == value
    spare = text[:-1] + chr(ord(text[-1]) + 1)
    for other in (spare, text + "==", text + "\n", text[:-1] + "!", text.replace("_", "/"), text[:43] + "\n" + text[43:-1], ""):
        assert other != text
        with pytest.raises(Invalid, match="not an Ed25519 signature"):
            decode_signature(other)


def test_a_key_is_written_in_one_way() -> None:
    """Text, key and text again; the fingerprint is the beginning of a sha256."""
    text = str(MINE.public)
    assert text.startswith(KEY_PREFIX) and len(text) == len(KEY_PREFIX) + 43
    assert PublicKey.parse(f" {text}\n") == MINE.public
    assert len(MINE.public.fingerprint) == 16 and MINE.public.fingerprint != STRANGER.public.fingerprint


def test_signatures_are_those_of_rfc_8032() -> None:
    """Its first test vector (7.1, TEST 1): an empty message."""
    key = HostKey.of(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public.raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = key.sign(b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert key.public.verifies(signature, b"") and not key.public.verifies(signature, b"x")
    assert not STRANGER.public.verifies(signature, b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY_PREFIX,
        str(MINE.public)[:-1],
        str(MINE.public) + "=",
        str(MINE.public) + "A",
        str(MINE.public)[len(KEY_PREFIX) :],
        str(MINE.public).replace(KEY_PREFIX, "castoff-rsa:"),
        KEY_PREFIX + "!" * 43,
        KEY_PREFIX + "é" * 43,
        str(MINE.public)[:-1] + chr(ord(str(MINE.public)[-1]) + 1),  # the last character has two bits to spare: zeros
        str(MINE.public)[:-2] + "!" + str(MINE.public)[-1],
        KEY_PREFIX + "A" * 1_000_000,
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """With an error of one short line."""
    with pytest.raises(Invalid) as error:
        PublicKey.parse(text)
    assert len(str(error.value)) < 400


def test_a_private_key_is_not_taken_for_a_public_one(state: Path) -> None:
    """The error says what it is, and does not repeat it whole."""
    host_key(state)
    text = (keys_directory(state) / "host.key").read_text()
    with pytest.raises(Invalid, match="private key"):
        PublicKey.parse(text)


def _small_order_points() -> list[int]:
    """The y of the points of order 1, 2, 4 and 8: computed on the curve, x from y by RFC 8032 5.1.3."""
    d = -121665 * pow(121666, P - 2, P) % P
    root = pow(2, (P - 1) // 4, P)

    def point(y: int) -> tuple[int, int] | None:
        square = (y * y - 1) * pow(d * y * y + 1, P - 2, P) % P
        x = pow(square, (P + 3) // 8, P)
        for candidate in (x, x * root % P):
            if (candidate * candidate - square) % P == 0:
                return candidate, y
        return None

    def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        k = d * a[0] * b[0] * a[1] * b[1] % P
        return (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, P - 2, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, P - 2, P) % P

    def times(number: int, base: tuple[int, int]) -> tuple[int, int]:
        result = (0, 1)
        while number:
            if number & 1:
                result = add(result, base)
            base, number = add(base, base), number >> 1
        return result

    order = 2**252 + 27742317777372353535851937790883648493
    found: set[int] = set()
    y = 1
    while len(found) < 5:  # whatever a point is, times the large prime it is one of the eight, which have five values of y
        start = point(y := y + 1)
        if start is not None:
            small = times(order, start)
            assert times(8, small) == (0, 1)
            found.add(small[1])
    return sorted(found)


def test_keys_that_anybody_can_sign_for_are_refused() -> None:
    """The points of small order, in every way to write them; each of them is found on the curve, not in a list."""
    points = _small_order_points()
    for y in (*points, *(y + P for y in points if y + P < 2**255)):
        for sign in (0, 1 << 255):
            raw = (y | sign).to_bytes(32, "little")
            text = KEY_PREFIX + urlsafe_b64encode(raw).decode().rstrip("=")
            with pytest.raises(Invalid, match="anybody"):
                PublicKey.parse(text)


# The host's own key


def test_the_hosts_key_is_made_once_for_its_owners_eyes(state: Path) -> None:
    """And found again; looking for it makes nothing."""
    assert find_host_key(state) is None
    assert not state.exists()
    made = host_key(state)
    assert find_host_key(state) == made == host_key(state)
    assert made.private.hex() not in repr(made)
    directory = keys_directory(state)
    assert (mode(directory), mode(directory / "host.key")) == (0o700, 0o600)
    assert host_key(state.with_name("other")) != made


MAKE = """
import pathlib, sys
from castoff.artifact.keys import host_key
import cryptography.hazmat.primitives.asymmetric.ed25519
for state in sys.stdin:
    print(host_key(pathlib.Path(state.strip())).public, flush=True)
"""


def test_of_many_processes_one_makes_the_key(state: Path) -> None:
    """All have the same one in the end, and nothing is left of the others' attempts."""
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for number in range(20):
        directory = state / str(number)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{directory}\n")
            process.stdin.flush()
        assert len({process.stdout.readline() for process in processes if process.stdout is not None}) == 1
        assert [path.name for path in keys_directory(directory).iterdir()] == ["host.key"]
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_what_a_killed_process_left_goes(state: Path) -> None:
    """A key that was written and never named is nobody's."""
    keys_directory(state).mkdir(parents=True, mode=0o700)
    (keys_directory(state) / ".host.key.12345678").write_text("half")
    host_key(state)
    assert [path.name for path in keys_directory(state).iterdir()] == ["host.key"]


@pytest.mark.parametrize("text", ["", "rubbish", "castoff-ed25519-private:AAAA", str(MINE.public), "x" * 5000, "\xff"])
def test_a_broken_key_is_an_error_and_stays(state: Path, text: str) -> None:
    """It may be all that is left of the right one."""
    host_key(state)
    path = keys_directory(state) / "host.key"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(Invalid, match=r"is not a (private key|key's file)"):
        host_key(state)
    assert path.read_text(encoding="latin-1") == text


@pytest.mark.parametrize("wrong", [0o604, 0o640, 0o660, 0o606])
def test_a_key_that_others_may_read_is_not_used(state: Path, wrong: int) -> None:
    """As ssh has it."""
    host_key(state)
    (keys_directory(state) / "host.key").chmod(wrong)
    with pytest.raises(Unauthorized, match="chmod 600"):
        host_key(state)


# Trust


def test_a_host_trusts_nobody_and_then_itself(state: Path) -> None:
    """Itself once it has a key."""
    assert load_trust(state).keys == ()
    own = host_key(state).public
    (known,) = load_trust(state).keys
    assert (known.key, known.own) == (own, True)
    assert load_trust(state).find(MINE.public) is None


def test_keys_come_and_go(state: Path) -> None:
    """Added twice is once; a name may be given later; removed by key, name or the beginning of the fingerprint."""
    trust_key(state, MINE.public)
    trust_key(state, MINE.public, "fleet")
    assert trust_key(state, MINE.public).name == "fleet"
    trust_key(state, STRANGER.public, "lab@2")
    assert {(known.key, known.name) for known in load_trust(state).keys} == {(MINE.public, "fleet"), (STRANGER.public, "lab@2")}
    for path in (keys_directory(state) / "trusted").iterdir():
        assert mode(path) & 0o022 == 0
    for word, key in (("fleet", MINE), (STRANGER.public.fingerprint[:6], STRANGER), (str(MINE.public), MINE)):
        trust_key(state, MINE.public, "fleet")
        assert distrust(state, word).key == key.public
        assert load_trust(state).find(key.public) is None
        with pytest.raises(NotFound):
            distrust(state, word)


@pytest.mark.parametrize("word", ["", "fleet2", MINE.public.fingerprint[:5], "*", "../host"])
def test_removing_what_is_not_there(state: Path, word: str) -> None:
    """Is told, and removes nothing; too short a beginning means nothing."""
    trust_key(state, MINE.public)
    with pytest.raises(NotFound):
        distrust(state, word)
    assert load_trust(state).find(MINE.public) is not None


def test_the_hosts_own_key_stays_trusted(state: Path) -> None:
    """It cannot be removed, and adding it changes nothing."""
    own = host_key(state).public
    with pytest.raises(Conflict, match="own key"):
        distrust(state, own.fingerprint)
    assert trust_key(state, own, "me").own
    assert len(load_trust(state).keys) == 1


def test_names_are_names(state: Path) -> None:
    """One key each, and nothing that a terminal or a file would act on."""
    trust_key(state, MINE.public, "fleet")
    with pytest.raises(Conflict, match="called fleet"):
        trust_key(state, STRANGER.public, "fleet")
    for name in ("a b", "a\nb", "\x1b[1m", "-x", "x" * 65, ".hidden"):
        with pytest.raises(Invalid):
            trust_key(state, STRANGER.public, name)
    assert len(load_trust(state).keys) == 1


def test_a_key_of_the_same_fingerprint_is_no_other_key(state: Path) -> None:
    """64 bits can be made to collide: the file of one is never taken for the other's."""
    directory = keys_directory(state) / "trusted"
    directory.mkdir(parents=True, mode=0o700)
    directory.parent.chmod(0o700)
    file = directory / f"{MINE.public.fingerprint}.pub"
    file.write_text(f"{STRANGER.public}\n")
    file.chmod(0o644)
    with pytest.raises(Conflict, match="deceive"):
        trust_key(state, MINE.public)
    assert load_trust(state).find(MINE.public) is None


def test_files_that_others_put_there_count_too(state: Path, tmp_path: Path) -> None:
    """Whatever their names; with comments; twice is once."""
    host_key(state)
    directory = keys_directory(state) / "trusted"
    directory.mkdir(mode=0o755)
    for name in ("0.pub", "fleet.pub"):
        (directory / name).write_text(f"# of the fleet\n\n{MINE.public} fleet\n")
        (directory / name).chmod(0o644)
    (directory / "README").write_text("nothing")
    trust = load_trust(state)
    assert trust.problems == () and [known.key for known in trust.keys if not known.own] == [MINE.public]
    trust_key(state, MINE.public, "renamed")
    assert [known.name for known in load_trust(state).keys if not known.own] == ["renamed"]
    (directory / "once-more.pub").write_text(f"{MINE.public}\n")
    distrust(state, "renamed")
    assert load_trust(state).find(MINE.public) is None


@pytest.mark.parametrize(
    ("text", "permissions", "said"),
    [
        ("", 0o644, "0 lines"),
        (f"{MINE.public}\n{STRANGER.public}\n", 0o644, "2 lines"),
        ("rubbish", 0o644, "is not a key"),
        (KEY_PREFIX + "A" * 43, 0o644, "anybody"),
        ("\x00" * 5000, 0o644, "is not a key's file"),
        (str(MINE.public), 0o664, "others may change"),
        (str(MINE.public), 0o646, "others may change"),
    ],
)
def test_a_file_that_is_broken_or_open_to_others_makes_nobody_trusted(
    state: Path, text: str, permissions: int, said: str
) -> None:
    """And nothing fail: it is told, and the others count."""
    trust_key(state, STRANGER.public, "good")
    path = keys_directory(state) / "trusted" / "bad.pub"
    path.write_text(text)
    path.chmod(permissions)
    trust = load_trust(state)
    assert [known.name for known in trust.keys] == ["good"]
    assert len(trust.problems) == 1 and said in trust.problems[0] and "bad.pub" in trust.problems[0]


def test_a_directory_that_others_may_write_makes_nobody_trusted(state: Path) -> None:
    """Whoever may rename files in it decides who is trusted."""
    trust_key(state, MINE.public)
    for directory in (keys_directory(state), keys_directory(state) / "trusted"):
        directory.chmod(0o777)
        trust = load_trust(state)
        assert trust.keys == () and len(trust.problems) == 1
        with pytest.raises(Unauthorized):
            trust_key(state, STRANGER.public)
        directory.chmod(0o700)
    assert len(load_trust(state).keys) == 1


def test_keys_are_read_from_files(tmp_path: Path) -> None:
    """With the name that stands there; what is neither key nor file is told as such."""
    path = tmp_path / "fleet.pub"
    path.write_text(f"{MINE.public} fleet\n")
    assert read_key(str(path)) == (MINE.public, "fleet")
    assert read_key(str(STRANGER.public)) == (STRANGER.public, "")
    os.mkfifo(tmp_path / "fifo")
    for text in (str(tmp_path / "none"), str(tmp_path / "fifo"), str(tmp_path), ""):
        with pytest.raises(CastoffError):
            read_key(text)
