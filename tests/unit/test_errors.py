"""Errors are one line that any terminal can show, whatever an image put into them."""

from __future__ import annotations

import pickle

from castoff.errors import CastoffError, DigestMismatch, Invalid, LimitExceeded


def test_control_characters_and_broken_names_are_escaped() -> None:
    """Line ends, escape sequences, names that are no UTF-8."""
    error = Invalid("a\nb\x1b[31m\udcff ü", hint="c\r\u2028d")
    assert str(error) == "a\\nb\\x1b[31m\\udcff ü; c\\r\\u2028d"
    assert error.what == "a\\nb\\x1b[31m\\udcff ü"
    assert error.args == (error.what,)
    str(error).encode()


def test_what_is_printable_stays_as_it_is() -> None:
    """Also beyond ASCII."""
    assert str(CastoffError("naïve – 画像")) == "naïve – 画像"
    assert pickle.loads(pickle.dumps(CastoffError("x"))).what == "x"


def test_errors_carry_their_data() -> None:
    """For programs."""
    limit = LimitExceeded("layers", limit=5, setting="a.b")
    assert (limit.limit, limit.setting, limit.code) == (5, "a.b", "invalid")
    mismatch = DigestMismatch("blob", expected="a", actual="b")
    assert (mismatch.expected, mismatch.actual) == ("a", "b")
    assert "blob should be a and is b" in str(mismatch)
