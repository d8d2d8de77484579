"""Keys say nothing about people, and secrets are made once, whole, and for their owner's eyes."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import stat
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError, SettingsError
from engine.identity import KEY_BYTES, MAX_ID_BYTES, UserKey, UserKeys, fault_in_id

KEY = UserKey(b"k" * 32)
ANY_TEXT = st.text(max_size=300) | st.text(st.characters(categories=["Mn", "Ll", "Lo", "Cs"]), max_size=8)


# --- deriving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_id", ["a", "ü", "4711", "x" * MAX_ID_BYTES, " ann ", "\n", "👩‍🚀"])
def test_a_key_is_half_an_hmac_of_the_id(user_id: str) -> None:
    expected = hmac.new(b"k" * 32, user_id.encode(), hashlib.sha256).digest()[:16]
    assert KEY.derive(user_id) == expected
    assert len(expected) == KEY_BYTES


@given(ids=st.lists(ANY_TEXT.filter(lambda text: not fault_in_id(text)), max_size=20))
def test_many_ids_get_the_keys_that_each_gets_alone(ids: list[str]) -> None:
    assert KEY.derive_many(ids) == [KEY.derive(each) for each in ids]


def test_another_secret_gives_another_key() -> None:
    assert UserKey(b"j" * 32).derive("ann") != KEY.derive("ann")


@pytest.mark.parametrize(
    ("user_id", "said"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("x" * 257, "257 bytes long"),
        ("ü" * 129, "258 bytes long"),
        ("e\u0301", "not NFC-normalised"),
        ("\u212b", "not NFC-normalised"),  # Ångström's sign
        ("\ud800", "not valid Unicode"),
    ],
)
def test_an_id_that_could_be_two_people_s_is_refused_with_the_field(user_id: str, said: str) -> None:
    assert said in fault_in_id(user_id)
    with pytest.raises(RequestError, match=said) as caught:
        KEY.derive(user_id)
    assert caught.value.field == "user_id"
    assert user_id == "" or user_id not in str(caught.value)


@given(user_id=ANY_TEXT)
def test_an_id_is_sound_exactly_when_it_is_short_valid_composed_text(user_id: str) -> None:
    surrogate = any("\ud800" <= character <= "\udfff" for character in user_id)
    sound = (
        bool(user_id)
        and "\0" not in user_id
        and not surrogate
        and len(user_id.encode()) <= MAX_ID_BYTES
        and unicodedata.normalize("NFC", user_id) == user_id
    )
    assert (fault_in_id(user_id) == "") == sound


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "keys"
    made = UserKeys.load(folder, create=True)
    assert UserKeys.load(folder) == UserKeys.load(str(folder), create=True) == made
    assert made.stable != made.rotating
    assert sorted(path.name for path in folder.iterdir()) == ["rotating.key", "stable.key"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_one_missing_secret_is_made_beside_the_one_that_is_there(tmp_path: Path) -> None:
    made = UserKeys.load(tmp_path, create=True)
    (tmp_path / "rotating.key").unlink()
    rotated = UserKeys.load(tmp_path, create=True)
    assert rotated.stable == made.stable
    assert rotated.rotating != made.rotating


def loaded(folder: str) -> tuple[bytes, bytes]:
    keys = UserKeys.load(folder, create=True)
    return keys.stable.secret, keys.rotating.secret


def test_processes_that_start_together_agree_on_the_secrets(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("forkserver")) as pool:
        for number in range(30):
            assert len(set(pool.map(loaded, [str(tmp_path / str(number))] * 4))) == 1
            assert len(list((tmp_path / str(number)).iterdir())) == 2


def test_nothing_is_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"stable\.key is missing") as caught:
        UserKeys.load(tmp_path / "keys")
    assert "bodega keys" in caught.value.remedy
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    UserKeys.load(tmp_path, create=True)
    (tmp_path / "rotating.key").chmod(mode)
    with pytest.raises(SettingsError, match=r"rotating\.key is readable by others") as caught:
        UserKeys.load(tmp_path)
    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"ab", b"zz" * 32, b"ab" * 31, b"ab" * 33, b"\xff" * 64])
def test_a_malformed_secret_is_refused_and_never_shown(tmp_path: Path, content: bytes) -> None:
    UserKeys.load(tmp_path, create=True)
    (tmp_path / "stable.key").write_bytes(content)
    with pytest.raises(SettingsError, match=r"stable\.key") as caught:
        UserKeys.load(tmp_path, create=True)
    assert len(content) < 3 or content.decode("latin-1") not in str(caught.value)


def test_a_secret_may_end_in_a_newline(tmp_path: Path) -> None:
    made = UserKeys.load(tmp_path, create=True)
    with (tmp_path / "stable.key").open("a") as file:
        file.write("\n")
    assert UserKeys.load(tmp_path) == made


def test_one_secret_for_both_is_refused(tmp_path: Path) -> None:
    UserKeys.load(tmp_path, create=True)
    (tmp_path / "rotating.key").write_bytes((tmp_path / "stable.key").read_bytes())
    with pytest.raises(SettingsError, match="the same secret"):
        UserKeys.load(tmp_path)


def test_a_folder_in_a_secret_s_place_and_a_file_in_the_folder_s_are_named(tmp_path: Path) -> None:
    (tmp_path / "keys" / "stable.key").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"stable\.key cannot be read"):
        UserKeys.load(tmp_path / "keys", create=True)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"stable\.key cannot be read"):
        UserKeys.load(tmp_path / "file", create=True)


def test_a_secret_is_shown_by_its_name_alone(tmp_path: Path) -> None:
    keys = UserKeys.load(tmp_path, create=True)
    for key in (keys.stable, keys.rotating):
        assert key.secret.hex() not in repr(keys)
        assert str(key.secret) not in repr(keys)
        assert key.key_id in repr(keys)
        assert len(key.key_id) == 8
        assert not key.secret.hex().startswith(key.key_id)
    assert keys.stable.key_id != keys.rotating.key_id


def test_keys_travel_to_a_task(tmp_path: Path) -> None:
    keys = UserKeys.load(tmp_path, create=True)
    assert pickle.loads(pickle.dumps(keys)) == keys  # noqa: S301 (our own bytes)
