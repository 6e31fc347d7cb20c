"""The primitives of docs/protocol.md, from its text alone: labels, shares, bitmaps, the tree."""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.outsider.messages import Bad


def u4(i):
    return struct.pack(">I", i)


def raw(x):
    return x.encode() if isinstance(x, str) else bytes(x)


def frame(*xs):
    return b"".join(struct.pack(">Q", len(raw(x))) + raw(x) for x in xs)


def H(label, *xs):
    return hashlib.sha256(frame("fedpeft/1 " + label, *xs)).digest()


def KDF(secret, salt, label, *xs):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=frame("fedpeft/1 " + label, *xs)).derive(secret)


def PRF(key, label, text):
    return hmac.new(key, b"fedpeft/1 " + label.encode() + b"\0" + raw(text), hashlib.sha256).digest()


def Sign(sk, m):
    return sk.sign(m)


def Verify(pk, sig, m):
    try:
        Ed25519PublicKey.from_public_bytes(pk).verify(sig, m)
        return True
    except Exception:
        return False


def xpub(sk):
    return X25519PrivateKey.from_private_bytes(sk).public_key().public_bytes_raw()


def DH(sk, pk):
    return X25519PrivateKey.from_private_bytes(sk).exchange(X25519PublicKey.from_public_bytes(pk))


def Encrypt(key, nonce, text, bound):
    return AESGCM(key).encrypt(nonce, text, bound)


def Decrypt(key, nonce, text, bound):
    return AESGCM(key).decrypt(nonce, text, bound)


def Tag(key, stage, *xs):
    return AESGCM(key).encrypt(stage.to_bytes(12, "big"), b"", frame(*xs))


def ctr(key, start, n):
    e = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
    return e.update(bytes(n))


def Stream(key, n):
    out, i, seg = [], 0, 1 << 24
    while n > 0:
        out.append(ctr(key, i.to_bytes(12, "big") + u4(2), min(n, seg)))
        n -= seg
        i += 1
    return b"".join(out)


P = 2**256 + 297
NO_SHARE = b"\xff" * 33


def bitmap(bits):
    bits = list(bits)
    out = bytearray((len(bits) + 7) // 8)
    for i, b in enumerate(bits):
        if b:
            out[i // 8] |= 0x80 >> (i % 8)
    return bytes(out)


def unbitmap(b, n):
    if len(b) != (n + 7) // 8:
        raise Bad("bitmap length")
    bits = [bool(b[i // 8] & (0x80 >> (i % 8))) for i in range(n)]
    if bitmap(bits) != b:
        raise Bad("padding")
    return bits


def interpolate(points):  # at zero
    s = 0
    for i, (x, y) in enumerate(points):
        a = b = 1
        for j, (z, _) in enumerate(points):
            if i != j:
                a = a * -z % P
                b = b * (x - z) % P
        s = (s + y * a * pow(b, -1, P)) % P
    return s


def root_and_levels(leaves):
    levels = [leaves]
    while len(levels[-1]) > 1:
        level = levels[-1]
        levels.append(
            [H("node", level[i], level[i + 1]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
        )
    return levels[-1][0], levels


def path(leaves, known):
    """What a device lacks: on each level, ascending, digests that stand beside a known one and are not known."""
    _, levels = root_and_levels(leaves)
    out = []
    known = set(known)
    for level in levels[:-1]:
        out += [level[i] for i in range(len(level)) if i not in known and (i ^ 1) in known]
        known = {i // 2 for i in known}
    return b"".join(out)


def root_from(n, known, p):
    """known: index -> digest."""
    p = [p[i : i + 32] for i in range(0, len(p), 32)]
    known = dict(known)
    while n > 1:
        up = {}
        lack = sorted({i ^ 1 for i in known if i ^ 1 < n and i ^ 1 not in known})
        if len(lack) > len(p):
            raise Bad("path short")
        for i, d in zip(lack, p, strict=False):
            known[i] = d
        p = p[len(lack) :]
        for i in known:
            j = i & ~1
            up[j // 2] = H("node", known[j], known[j + 1]) if j + 1 < n else known[j]
        known = up
        n = (n + 1) // 2
    if p:
        raise Bad("path long")
    return known[0]
