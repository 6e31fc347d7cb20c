"""Checks tests/vectors/*.json with the standard library alone: an independent reading of docs/protocol.md.

    python tests/vectors/verify.py

X25519 (RFC 7748), Ed25519 verification (RFC 8032), AES-256, CTR and GCM (FIPS 197, SP 800-38A and D), HKDF (RFC 5869)
and Shamir's scheme are written out here, slowly and plainly; nothing of fedpeft is imported.
"""

# ruff: noqa: B905, PLR0912, RUF017, RUF059, T201
import hashlib
import hmac
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
P = 2**255 - 19
PRIME = 2**256 + 297


def unhex(text):
    return bytes.fromhex(text)


# ---- AES-256


def _make_sbox():
    """The inverse in GF(2^8), then the affine map."""
    box, p, q = [0] * 256, 1, 1
    while True:
        p = p ^ (p << 1 & 255) ^ (0x1B if p & 128 else 0)
        for shift in (1, 2, 4):
            q ^= q << shift & 255
        if q & 128:
            q ^= 9
        x = q
        for turn in (1, 2, 3, 4):
            x ^= (q << turn | q >> 8 - turn) & 255
        box[p] = x ^ 0x63
        if p == 1:
            box[0] = 0x63
            return box


SBOX = _make_sbox()


def double(b):
    return b << 1 & 255 ^ (0x1B if b & 128 else 0)


def aes_schedule(key):
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    rcon = 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= rcon
            rcon = double(rcon)
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(words[-8], word)])
    return [sum(words[i : i + 4], []) for i in range(0, 60, 4)]


def aes_block(schedule, block):
    state = [a ^ b for a, b in zip(block, schedule[0])]
    for number, key in enumerate(schedule[1:], 1):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 14:
            mixed = []
            for c in range(0, 16, 4):
                a = state[c : c + 4]
                mixed += [
                    double(a[i]) ^ double(a[(i + 1) % 4]) ^ a[(i + 1) % 4] ^ a[(i + 2) % 4] ^ a[(i + 3) % 4]
                    for i in range(4)
                ]
            state = mixed
        state = [a ^ b for a, b in zip(state, key)]
    return bytes(state)


def ctr(key, counter, size):
    schedule, out, value = aes_schedule(key), b"", int.from_bytes(counter, "big")
    while len(out) < size:
        out += aes_block(schedule, (value % 2**128).to_bytes(16, "big"))
        value += 1
    return out[:size]


def ghash(h, text):
    y, h = 0, int.from_bytes(h, "big")
    for i in range(0, len(text), 16):
        x, z, v = y ^ int.from_bytes(text[i : i + 16], "big"), 0, h
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                z ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        y = z
    return y.to_bytes(16, "big")


def padded(text):
    return text + bytes(-len(text) % 16)


def gcm(key, nonce, plaintext, bound):
    """Ciphertext and tag."""
    schedule = aes_schedule(key)
    sealed = bytes(a ^ b for a, b in zip(plaintext, ctr(key, nonce + b"\0\0\0\2", len(plaintext))))
    lengths = (8 * len(bound)).to_bytes(8, "big") + (8 * len(sealed)).to_bytes(8, "big")
    s = ghash(aes_block(schedule, bytes(16)), padded(bound) + padded(sealed) + lengths)
    first = aes_block(schedule, nonce + b"\0\0\0\1")
    return sealed, bytes(a ^ b for a, b in zip(s, first))


# ---- curves


def x25519(scalar, point):
    k = bytearray(scalar)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    k = int.from_bytes(k, "little")
    x1 = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
    if swap:
        x2, x3, z2, z3 = x3, x2, z3, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


BASE_U = (9).to_bytes(32, "little")
D = -121665 * pow(121666, -1, P) % P
L = 2**252 + 27742317777372353535851937790883648493


def ed_add(p, q):
    (x1, y1), (x2, y2) = p, q
    t = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def ed_mul(k, p):
    total = (0, 1)
    while k:
        if k & 1:
            total = ed_add(total, p)
        p, k = ed_add(p, p), k >> 1
    return total


def ed_point(text):
    y = int.from_bytes(text, "little")
    sign, y = y >> 255, y % 2**255
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - xx) % P:
        raise ValueError("no point")
    return (P - x if x & 1 != sign else x), y


ED_BASE = ed_point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def ed_verifies(public, signature, text):
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + text).digest(), "little") % L
    s = int.from_bytes(signature[32:], "little")
    return s < L and ed_mul(s, ED_BASE) == ed_add(ed_point(signature[:32]), ed_mul(h, ed_point(public)))


# ---- docs/protocol.md, "Primitives"


def framed(*parts):
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def label(text):
    return ("fedpeft/1 " + text).encode()


def digest(name, *parts):
    return hashlib.sha256(framed(label(name), *parts)).digest()


def hkdf(secret, salt, name, *parts):
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, framed(label(name), *parts) + b"\1", "sha256")


def prf(key, name, text):
    return hmac.digest(key, label(name) + b"\0" + text, "sha256")


def tag(key, stage, *parts):
    return gcm(key, stage.to_bytes(12, "big"), b"", framed(*parts))[1]


def id4(n):
    return n.to_bytes(4, "big")


# ---- the round


class Device:
    """One device's secrets, from its root."""

    def __init__(self, number, root, document, context):
        self.number, self.root = number, root
        self.channel = hkdf(root, context, "channel-key")
        self.mask = hkdf(root, context, "mask-key")
        self.channel_public, self.mask_public = x25519(self.channel, BASE_U), x25519(self.mask, BASE_U)
        self.blocks = [block["block_id"] for block in document["spec"]["blocks"]]
        self.seeds = [hkdf(root, context, "self-mask", block.encode()) for block in self.blocks]


def shamir(secret, threshold, x, coefficients):
    values = [int.from_bytes(coefficients[i : i + 48], "big") % PRIME for i in range(0, 48 * (threshold - 1), 48)]
    y = 0
    for value in [*values, int.from_bytes(secret, "big")]:
        y = (y * x + value) % PRIME
    return y.to_bytes(33, "big")


def encoded(values, bits, addends):
    """Exact ranges: the value plus B, in lanes of little-endian words."""
    b = min((2**bits - 1) // (2 * addends), 2**35)
    lanes, size = (1, bits // 8) if bits in (8, 16, 32, 64) else (64 // bits, 8)
    words = [0] * -(-len(values) // lanes)
    for i, value in enumerate(values):
        lane, word = divmod(i, len(words))
        words[word] |= int(value) + b << lane * bits
    return words, size, b, lanes


def check(condition, what):
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def verify_round(path):
    document = json.loads(path.read_text())
    spec, exchanges = document["spec"], document["exchanges"]
    count = len(spec["participants"])
    threshold = {3: 2}[count]
    said = {(e["request"]["type"], e["device"]): e["reply"] for e in exchanges}
    asked = {(e["request"]["type"], e["device"]): e["request"] for e in exchanges}

    offer = asked["RoundOffer", 1]
    context = digest("offer", unhex(offer["spec"]), unhex(offer["coordinator_channel"]))
    names = [p[kind].encode() for p in spec["participants"] for kind in ("device", "organisation")]
    fields = [
        b"".join(unhex(p["identity"]) for p in spec["participants"]),
        b"".join(len(name).to_bytes(2, "big") for name in names),
        b"".join(names),
    ]
    rows = framed(*fields)
    rows = b"FP" + bytes([3]) + 0x030D.to_bytes(2, "big") + len(rows).to_bytes(8, "big") + rows
    check(unhex(offer["roster"]) == rows, "the roster's rows are the participants'")
    run = spec["run_id"].encode()
    at = 13 + 8 + len(run) + 16 + 8 + len(spec["mode"]) + 8  # header, run, round and attempt, mode, a length
    check(unhex(offer["spec"])[at : at + 32] == digest("participants", rows), "the terms hold the roster's digest")
    check(
        ed_verifies(unhex(document["coordinator_public"]), unhex(offer["signature"]), context),
        "the terms are signed by the coordinator",
    )
    identities = {n: unhex(spec["participants"][n - 1]["identity"]) for n in range(1, count + 1)}
    devices = {n: Device(n, unhex(document["roots"][str(n)]), document, context) for n in range(1, count + 1)}
    reply_keys = {
        n: hkdf(x25519(d.channel, unhex(offer["coordinator_channel"])), context, "reply") for n, d in devices.items()
    }

    digests = {}
    for n, d in devices.items():
        advert = said["RoundOffer", n]
        commitments = [
            digest("commitment", context, id4(n), block.encode(), seed) for block, seed in zip(d.blocks, d.seeds)
        ]
        digests[n] = digest(
            "advertise",
            context,
            id4(n),
            spec["participants"][n - 1]["device"].encode(),
            spec["participants"][n - 1]["organisation"].encode(),
            id4(advert["weight_class"]),
            *(b.encode() for b in d.blocks),
            b"keys",
            d.channel_public,
            d.mask_public,
            digest("commitments", *commitments),
        )
        check(
            (unhex(advert["channel_key"]), unhex(advert["mask_key"]), [unhex(c) for c in advert["commitments"]])
            == (d.channel_public, d.mask_public, commitments),
            f"device {n}: keys and commitments follow from its root",
        )
        check(ed_verifies(identities[n], unhex(advert["signature"]), digests[n]), f"device {n}: its advert is signed")

    request = asked["ShareRequest", 1]
    leaves = list(digests.values())
    while len(leaves) > 1:
        odd = leaves[len(leaves) // 2 * 2 :]
        leaves = [digest("node", *leaves[i : i + 2]) for i in range(0, len(leaves) - 1, 2)] + odd
    check([unhex(request["root"])] == leaves, "the roster has the root of the tree over the digests of the adverts")
    check(unhex(request["members"]) == bytes([256 - 2 ** (8 - count)]), "and all members")
    for n in devices:
        keys = b""
        for m, peer in devices.items():
            advert = said["RoundOffer", m]
            committed = digest("commitments", *map(unhex, advert["commitments"]))
            if m != n:
                keys += peer.channel_public + peer.mask_public + committed + unhex(advert["signature"])
        shown = asked["ShareRequest", n]
        check((unhex(shown["neighbours"]), shown["path"]) == (keys, ""), f"device {n} is shown its neighbours' keys")
    classes = bytes(said["RoundOffer", n]["weight_class"] for n in devices)
    check(unhex(request["classes"]) == classes, "and their weight classes")
    roster = digest(
        "roster", context, unhex(request["members"]), unhex(request["root"]), classes, *map(unhex, request["owners"])
    )
    channels, edges = {}, {}
    for n, d in devices.items():
        for m, peer in devices.items():
            if m != n:
                channels[n, m] = hkdf(x25519(d.channel, peer.channel_public), roster, "channel")
                keys = sorted([d.mask_public, peer.mask_public])
                edges[n, m] = hkdf(x25519(d.mask, peer.mask_public), roster, "edge", *keys)

    shares = {}
    for n, d in devices.items():
        ciphertexts = b""
        for m in devices:
            if m == n:
                continue
            plaintext = b""
            for index, secret in enumerate([d.mask, *d.seeds]):
                coefficients = ctr(prf(d.root, "coefficients", roster + id4(index)), bytes(16), 48 * (threshold - 1))
                shares[n, m, index] = shamir(secret, threshold, m, coefficients)
                plaintext += shares[n, m, index]
            ciphertext = gcm(
                prf(channels[n, m], "box", b""), n.to_bytes(12, "big"), plaintext, roster + id4(n) + id4(m)
            )
            ciphertexts += b"".join(ciphertext)
        reply = said["ShareRequest", n]
        check(
            (unhex(reply["ciphertexts"]), unhex(reply["tag"]))
            == (ciphertexts, tag(reply_keys[n], 1, roster, ciphertexts)),
            f"device {n}: its ciphertexts hold its shares",
        )

    sharers = unhex(asked["MaskRequest", 1]["sharers"])
    second = digest("sharers", roster, sharers)
    sums = {}
    for n, d in devices.items():
        vectors = []
        for block, seed in zip(spec["blocks"], d.seeds):
            name = block["block_id"]
            words, size, b, lanes = encoded(document["inputs"][str(n)][name], block["bits"], count)
            sums.setdefault(name, []).append(document["inputs"][str(n)][name])
            streams = [(1, prf(seed, "self", roster + name.encode()))]
            streams += [(1 if n < m else -1, prf(edges[n, m], "pair", name.encode())) for m in devices if m != n]
            for sign, key in streams:
                stream = ctr(key, bytes(12) + b"\0\0\0\2", size * len(words))
                for i in range(len(words)):
                    words[i] += sign * int.from_bytes(stream[size * i : size * i + size], "little")
            vectors.append(b"".join((w % 2 ** (8 * size)).to_bytes(size, "little") for w in words))
        reply = said["MaskRequest", n]
        check([unhex(v) for v in reply["vectors"]] == vectors, f"device {n}: its masked vectors are input plus masks")
        check(unhex(reply["tag"]) == tag(reply_keys[n], 2, second, b"", *vectors), f"device {n}: and authenticated")
        signed = ed_verifies(identities[n], unhex(reply["signature"]), digest("masked", second, id4(n)))
        check(signed, f"device {n}: it signs whom it masked for")

    third = digest("survivors", second, unhex(asked["ConsistRequest", 1]["survivors"]))
    for n in devices:
        reply = said["ConsistRequest", n]
        agreement = unhex(reply["signature"])
        check(
            (unhex(reply["context"]), unhex(reply["tag"])) == (third, tag(reply_keys[n], 3, third, agreement)),
            f"device {n}: it answers for these survivors",
        )
        check(ed_verifies(identities[n], agreement, digest("agree", third, id4(n))), f"device {n}: and signs them")
        shown = asked["RevealRequest", n]
        check(
            unhex(shown["signatures"]) == b"".join(unhex(said["ConsistRequest", m]["signature"]) for m in devices)
            and not unhex(shown["masked"]),
            f"device {n}: it is shown that all of them did",
        )
        revealed = b"".join(
            shares[m, n, index] for m in devices if m != n for index in range(1, 1 + len(spec["blocks"]))
        )
        reply = said["RevealRequest", n]
        opened = unhex(reply["opened"])
        check(
            (unhex(reply["shares"]), unhex(reply["tag"])) == (revealed, tag(reply_keys[n], 4, third, opened, revealed)),
            f"device {n}: it reveals self-mask shares only",
        )
    for block in spec["blocks"]:
        name, total, size = block["block_id"], None, None
        for n in devices:
            index = [b["block_id"] for b in spec["blocks"]].index(name)
            words, size, b, lanes = encoded(document["inputs"][str(n)][name], block["bits"], count)
            vector = unhex(said["MaskRequest", n]["vectors"][index])
            here = [int.from_bytes(vector[i : i + size], "little") for i in range(0, len(vector), size)]
            stream = ctr(
                prf(devices[n].seeds[index], "self", roster + name.encode()), bytes(12) + b"\0\0\0\2", len(vector)
            )
            here = [w - int.from_bytes(stream[size * i : size * i + size], "little") for i, w in enumerate(here)]
            total = here if total is None else [a + b_ for a, b_ in zip(total, here)]
        total = [w % 2 ** (8 * size) for w in total]
        length = sum(part["length"] for part in block["ranges"])
        found = []
        for i in range(length):
            lane, word = divmod(i, len(total))
            found.append((total[word] >> lane * block["bits"]) % 2 ** block["bits"] - count * b)
        expected = [sum(column) for column in zip(*sums[name])]
        check(found == expected == document["sums"][name], f"block {name}: without self masks the sum remains")


def verify_known_answers():
    """That this file's own primitives are right: the published vectors."""
    scalar = unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    check(x25519(scalar, point).hex().startswith("c3da55379de9c690"), "RFC 7748 5.2")
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    stream = ctr(key, unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), 16)
    text = unhex("6bc1bee22e409f96e93d7e117393172a")
    check(bytes(a ^ b for a, b in zip(stream, text)).hex() == "601ec313775789a5b7a7f504bbf3d228", "SP 800-38A F.5.5")
    sealed = gcm(bytes(32), bytes(12), bytes(16), b"")
    check(sealed[0].hex() == "cea7403d4d606b6e074ec5d3baf39d18", "GCM test case 14")
    check(sealed[1].hex() == "d0d1c8a799996bf0265b98b5d48ab919", "GCM test case 14, tag")
    public = unhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = unhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    check(ed_verifies(public, signature, b""), "RFC 8032 7.1, test 1")
    check(not ed_verifies(public, signature, b"x"), "and another text does not verify")


if __name__ == "__main__":
    verify_known_answers()
    for file in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("round*.json")):
        verify_round(file)
    print("all vectors verified")
