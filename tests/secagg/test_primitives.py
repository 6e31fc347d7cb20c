"""Published known answers for every primitive, and the identities that the protocol relies on."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.secagg import primitives
from fedpeft.secagg.primitives import (
    AgreementKey,
    IdentityKey,
    Secret,
    authenticate,
    digest,
    expand,
    fastest_backend,
    forget_signatures,
    hkdf,
    is_authentic,
    is_signed,
    open_sealed,
    seal,
    stream,
)

unhex = bytes.fromhex


def test_rfc_7748_section_5_2() -> None:
    scalar = unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    expected = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert AgreementKey(scalar).agree(point).hex() == expected


def test_rfc_8032_section_7_1_test_1() -> None:
    key = IdentityKey(unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    signature = unhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"") == signature
    assert is_signed(key.public, signature, b"")
    assert not is_signed(key.public, signature, b"x")


def test_rfc_5869_appendix_a_1() -> None:
    okm = HKDF(hashes.SHA256(), 42, unhex("000102030405060708090a0b0c"), unhex("f0f1f2f3f4f5f6f7f8f9")).derive(
        b"\x0b" * 22
    )
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


@given(secret=st.binary(min_size=32, max_size=32), salt=st.binary(max_size=40), part=st.binary(max_size=40))
def test_our_hkdf_is_the_librarys(secret: bytes, salt: bytes, part: bytes) -> None:
    info = b"".join(len(text).to_bytes(8, "big") + text for text in (b"fedpeft/1 label", part))
    assert hkdf(secret, salt, "label", part) == HKDF(hashes.SHA256(), 32, salt, info).derive(secret)


def test_sp_800_38a_section_f_5_5() -> None:
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    cipher = Cipher(algorithms.AES(key), modes.CTR(unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))).encryptor()
    assert cipher.update(unhex("6bc1bee22e409f96e93d7e117393172a")).hex() == "601ec313775789a5b7a7f504bbf3d228"


def test_gcm_test_case_2_and_its_keystream_is_ours() -> None:
    encryptor = Cipher(algorithms.AES(bytes(16)), modes.GCM(bytes(12))).encryptor()
    assert encryptor.update(bytes(16)).hex() == "0388dace60b6a392f328c2b971b2fe78"
    encryptor.finalize()
    assert encryptor.tag.hex() == "ab6e47d42cec13bdf53a67b21257bddf"


@given(key=st.binary(min_size=32, max_size=32), segment=st.integers(0, 2**64), size=st.integers(1, 3000))
def test_ctr_and_gcm_give_the_same_stream_in_any_segment(key: bytes, segment: int, size: int) -> None:
    found = []
    for backend in ("ctr", "gcm"):
        out = bytearray(size + 15)
        stream(key, segment, backend)(memoryview(bytes(size)), memoryview(out))
        found.append(bytes(out[:size]))
    block = segment.to_bytes(12, "big") + b"\0\0\0\2"
    expected = Cipher(algorithms.AES(key), modes.CTR(block)).encryptor().update(bytes(size))
    assert found == [expected, expected]


def test_a_low_order_point_is_refused() -> None:
    for point in (bytes(32), (1).to_bytes(32, "little"), b"\x01"):
        assert AgreementKey(b"k" * 32).agree(point) is None


def test_agreement_is_the_same_on_both_ends_and_matches_the_library() -> None:
    one, other = AgreementKey(b"a" * 32), AgreementKey(b"b" * 32)
    library = X25519PrivateKey.from_private_bytes(b"a" * 32).exchange(X25519PublicKey.from_public_bytes(other.public))
    assert one.agree(other.public) == other.agree(one.public) == library


def test_a_ciphertext_opens_only_with_its_key_nonce_and_binding() -> None:
    ciphertext = seal(b"k" * 32, b"n" * 12, b"share", b"from 1 to 2")
    assert open_sealed(b"k" * 32, b"n" * 12, ciphertext, b"from 1 to 2") == b"share"
    assert open_sealed(b"K" * 32, b"n" * 12, ciphertext, b"from 1 to 2") is None
    assert open_sealed(b"k" * 32, b"N" * 12, ciphertext, b"from 1 to 2") is None
    assert open_sealed(b"k" * 32, b"n" * 12, ciphertext, b"from 2 to 1") is None
    assert open_sealed(b"k" * 32, b"n" * 12, b"", b"from 1 to 2") is None


def test_a_tag_binds_every_part_and_where_it_ends() -> None:
    key = b"k" * 32
    tag = authenticate(key, 1, [b"ab", b"c"])
    assert is_authentic(key, 1, [b"ab", b"c"], tag)
    for stage, parts in ((2, [b"ab", b"c"]), (1, [b"a", b"bc"]), (1, [b"abc"]), (1, [b"ab", b"c", b""])):
        assert not is_authentic(key, stage, parts, tag)
    assert not is_authentic(key, 1, [b"ab", b"c"], b"")


def test_a_digest_depends_on_label_parts_and_where_they_end() -> None:
    assert len({digest("a", b"bc"), digest("a", b"b", b"c"), digest("ab", b"c"), digest("a", b"bc", b"")}) == 4


def test_expand_is_plain_ctr_from_block_zero() -> None:
    expected = Cipher(algorithms.AES(b"k" * 32), modes.CTR(bytes(16))).encryptor().update(bytes(100))
    assert expand(b"k" * 32, 100) == expected


@pytest.mark.parametrize("secret", [Secret(b"s" * 32), IdentityKey(b"s" * 32), AgreementKey(b"s" * 32)])
def test_no_secret_shows_in_a_repr(secret: object) -> None:
    for text in (repr(secret), str(secret), f"{secret}", repr([secret])):
        assert "ssss" not in text
        assert (b"s" * 32).hex() not in text


def test_a_malformed_key_or_signature_is_a_plain_no() -> None:
    assert not is_signed(b"short", b"", b"text")
    assert not is_signed(IdentityKey(b"s" * 32).public, b"", b"text")


def test_the_back_end_is_chosen_once_and_is_one_of_two() -> None:
    assert fastest_backend() in ("ctr", "gcm")
    assert fastest_backend() is fastest_backend()


@pytest.mark.parametrize(
    ("public", "signature"), [(b"p" * 32, b"s" * 65), (b"p" * 33, b"s" * 64), (b"", b""), (b"p" * 32, bytes(1 << 20))]
)
def test_what_has_not_the_size_of_a_signature_is_a_no_and_is_not_kept(public: bytes, signature: bytes) -> None:
    """A peer chooses how long these are; what is kept for the life of the process must not grow with them."""
    forget_signatures()
    assert not is_signed(public, signature, bytes(32))
    key = IdentityKey.from_bytes(bytes(32))
    assert is_signed(key.public, key.sign(b"a longer text, of a certificate"), b"a longer text, of a certificate")
    assert primitives._verified.cache_info().currsize == 0
    assert is_signed(key.public, key.sign(bytes(32)), bytes(32))
    assert primitives._verified.cache_info().currsize == 1
