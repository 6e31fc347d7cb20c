"""A device of the secure sum in full mode, written from docs/protocol.md alone; nothing of fedpeft is imported."""

import os

import numpy as np

from tests.outsider.graphs import graphs, opened, quorum
from tests.outsider.messages import CONTEXTS, decode, encode
from tests.outsider.primitives import (
    DH,
    KDF,
    NO_SHARE,
    PRF,
    Decrypt,
    Encrypt,
    H,
    P,
    Sign,
    Stream,
    Tag,
    Verify,
    bitmap,
    ctr,
    root_from,
    u4,
    unbitmap,
    xpub,
)
from tests.outsider.vectors import encode_vector, nbytes, words_of


class Device:
    def __init__(self, name, organisation, identity, coordinator_pk, inputs, weight_class, rng):
        """inputs: {block id: vector}"""
        self.name, self.org, self.sk, self.cpk, self.inputs, self.cls, self.rng = (
            name,
            organisation,
            identity,
            coordinator_pk,
            inputs,
            weight_class,
            rng,
        )

    def refusal(self, reason, detail=""):
        return encode("Refusal", reason=reason, detail=detail)

    def on(self, raw_):
        name, m = decode(raw_)
        return getattr(self, "on_" + name)(m)

    def context(self, name):
        return getattr(self, CONTEXTS[name].lower())

    def on_RoundOffer(self, m):
        self.c0 = H("offer", m["spec"], m["coordinator_channel"])
        if not Verify(self.cpk, m["signature"], self.c0):
            return self.refusal("bad-signature")
        _, self.terms = decode(m["spec"], "RoundTerms")
        if not m["roster"]:
            return self.refusal("missing-roster")
        if H("participants", m["roster"]) != self.terms["roster"]:
            return self.refusal("bad-roster")
        _, rows = decode(m["roster"], "RosterRows")
        lens = np.frombuffer(rows["lengths"], ">u2").tolist()
        p = 0
        names = []
        for n in lens:
            names.append(rows["names"][p : p + n].decode())
            p += n
        self.people = [
            (names[2 * i], names[2 * i + 1], rows["identities"][32 * i : 32 * i + 32]) for i in range(len(lens) // 2)
        ]
        me = (self.name, self.org, self.sk.public_key().public_bytes_raw())
        if me not in self.people:
            return self.refusal("not-on-roster")
        self.id = self.people.index(me) + 1
        self.blocks = {b["block_id"]: b for b in self.terms["blocks"]}
        self.own = [b for b in self.blocks if b in self.inputs]
        root = os.urandom(32)
        self.root_secret = root
        self.ch, self.mk = KDF(root, self.c0, "channel-key"), KDF(root, self.c0, "mask-key")
        self.seeds = {b: KDF(root, self.c0, "self-mask", b) for b in self.own}
        self.reply_key = KDF(DH(self.ch, m["coordinator_channel"]), self.c0, "reply")
        com = [H("commitment", self.c0, u4(self.id), b, self.seeds[b]) for b in self.own]
        self.D = H(
            "advertise",
            self.c0,
            u4(self.id),
            self.name,
            self.org,
            u4(self.cls),
            *self.own,
            "keys",
            xpub(self.ch),
            xpub(self.mk),
            H("commitments", *com),
        )
        return encode(
            "Advertise",
            context=self.c0,
            participant_id=self.id,
            device=self.name,
            organisation=self.org,
            weight_class=self.cls,
            blocks=self.own,
            channel_key=xpub(self.ch),
            mask_key=xpub(self.mk),
            commitments=com,
            signature=Sign(self.sk, self.D),
        )

    def on_ShareRequest(self, m):
        if m["context"] != self.context("ShareRequest"):
            return self.refusal("wrong-round")
        mem = unbitmap(m["members"], len(self.people))
        self.u1 = [i + 1 for i, b in enumerate(mem) if b]
        n = len(self.u1)
        if self.id not in self.u1 or len(m["classes"]) != n or len(m["owners"]) != len(self.blocks):
            return self.refusal("bad-roster")
        own = [unbitmap(o, n) for o in m["owners"]]
        self.owns = {i: [b for b, o in zip(self.blocks, own, strict=False) if o[k]] for k, i in enumerate(self.u1)}
        self.c1 = H("roster", self.c0, m["members"], m["root"], m["classes"], *m["owners"])
        self.S, self.t, self.c, self.M = graphs(self.u1, self.owns, self.blocks, self.c1, self.terms)
        self.sn = self.S[self.id]
        self.orgs = {i: self.people[i - 1][1] for i in self.u1}
        leaves, self.peers = {}, {}
        nb = sorted(set(self.sn).union(*(self.M[b][0][self.id] for b in self.own)))
        if len(m["neighbours"]) != 160 * len(nb):
            return self.refusal("bad-roster")
        for j, v in enumerate(nb):
            r = m["neighbours"][160 * j : 160 * j + 160]
            ch, mk, com, sig = r[:32], r[32:64], r[64:96], r[96:]
            d, o, pk = self.people[v - 1]
            D = H(
                "advertise",
                self.c0,
                u4(v),
                d,
                o,
                u4(m["classes"][self.u1.index(v)]),
                *self.owns[v],
                "keys",
                ch,
                mk,
                com,
            )
            if not Verify(pk, sig, D):
                return self.refusal("bad-signature")
            leaves[self.u1.index(v)] = D
            self.peers[v] = (ch, mk)
        leaves[self.u1.index(self.id)] = self.D
        if root_from(n, leaves, m["path"]) != m["root"]:
            return self.refusal("bad-roster")
        self.box = {v: PRF(KDF(DH(self.ch, p[0]), self.c1, "channel"), "box", b"") for v, p in self.peers.items()}
        secrets = [self.mk] + [self.seeds[b] for b in self.own]
        polys = []
        for i, s in enumerate(secrets):
            co = ctr(PRF(self.root_secret, "coefficients", self.c1 + u4(i)), bytes(16), 48 * (self.t - 1))
            polys.append(
                [int.from_bytes(co[48 * j : 48 * j + 48], "big") % P for j in range(self.t - 1)]
                + [int.from_bytes(s, "big")]
            )
        cts = b""
        for v in self.sn:
            text = b""
            for p in polys:
                y = 0
                for a in p:
                    y = (y * v + a) % P
                text += y.to_bytes(33, "big")
            cts += Encrypt(self.box[v], self.id.to_bytes(12, "big"), text, self.c1 + u4(self.id) + u4(v))
        return encode("EncryptedShares", context=self.c1, ciphertexts=cts, tag=Tag(self.reply_key, 1, self.c1, cts))

    def on_MaskRequest(self, m):
        if m["context"] != self.context("MaskRequest"):
            return self.refusal("wrong-round")
        s = unbitmap(m["sharers"], len(self.u1))
        self.u2 = [i for i, b in zip(self.u1, s, strict=False) if b]
        if (
            self.id not in self.u2
            or sum(v in self.u2 for v in self.sn) < self.t
            or len(m["ciphertexts"]) != sum(v in self.u2 for v in self.sn)
        ):
            return self.refusal("too-few-devices")
        self.c2 = H("sharers", self.c1, m["sharers"])
        self.held, unopened = {}, []
        for v, ct in zip((v for v in self.u2 if v in self.sn), m["ciphertexts"], strict=False):
            try:
                text = Decrypt(self.box[v], v.to_bytes(12, "big"), ct, self.c1 + u4(v) + u4(self.id))
                assert len(text) == 33 * (1 + len(self.owns[v]))
                self.held[v] = dict(
                    zip(
                        [None] + self.owns[v],
                        (text[33 * j : 33 * j + 33] for j in range(1 + len(self.owns[v]))),
                        strict=False,
                    )
                )
                assert all(int.from_bytes(x, "big") < P for x in self.held[v].values())
            except Exception:
                unopened.append(v)
                self.held[v] = {}
        vec = []
        for b in self.own:
            blk = self.blocks[b]
            n = nbytes(blk)
            x = encode_vector(blk, len(self.people), self.inputs[b], self.rng)
            x = x + words_of(blk, Stream(PRF(self.seeds[b], "self", self.c1 + b.encode()), n))
            for v in self.u2:
                if v not in self.M[b][0][self.id]:
                    continue
                a, z = sorted([xpub(self.mk), self.peers[v][1]])
                pair = words_of(
                    blk, Stream(PRF(KDF(DH(self.mk, self.peers[v][1]), self.c1, "edge", a, z), "pair", b), n)
                )
                x = x + pair if self.id < v else x - pair
            vec.append(x.tobytes())
        return encode(
            "MaskedInput",
            context=self.c2,
            unopened=unopened,
            vectors=vec,
            signature=Sign(self.sk, H("masked", self.c2, u4(self.id))),
            tag=Tag(self.reply_key, 2, self.c2, b"".join(map(u4, unopened)), *vec),
        )

    def on_ConsistRequest(self, m):
        if m["context"] != self.context("ConsistRequest"):
            return self.refusal("wrong-round")
        s = unbitmap(m["survivors"], len(self.u1))
        self.u3 = [i for i, b in zip(self.u1, s, strict=False) if b]
        self.u3map = m["survivors"]
        if self.id not in self.u3 or not set(self.u3) <= set(self.u2) or sum(v in self.u3 for v in self.sn) < self.t:
            return self.refusal("too-few-devices")
        self.c3 = H("survivors", self.c2, m["survivors"])
        sig = Sign(self.sk, H("agree", self.c3, u4(self.id)))
        return encode("Agreement", context=self.c3, signature=sig, tag=Tag(self.reply_key, 3, self.c3, sig))

    def on_RevealRequest(self, m):
        if m["context"] != self.context("RevealRequest") or m["survivors"] != self.u3map:
            return self.refusal("wrong-round")
        s = unbitmap(m["signers"], len(self.u1))
        signers = [i for i, b in zip(self.u1, s, strict=False) if b]
        sig = [m["signatures"][64 * j : 64 * j + 64] for j in range(len(signers))]
        if len(m["signatures"]) != 64 * len(signers) or not set(signers) <= set(self.u3):
            return self.refusal("bad-agreement")
        if not all(
            Verify(self.people[v - 1][2], g, H("agree", self.c3, u4(v))) for v, g in zip(signers, sig, strict=False)
        ):
            return self.refusal("bad-agreement")
        n = len(self.u1)
        W = set(signers) | {self.id}
        if len(W) < quorum(n, self.c, self.terms["min_cohort"]):
            return self.refusal("too-few-devices")
        rest = [v for v in self.u3 if v not in W and v in self.sn]
        if len(m["masked"]) != 64 * len(rest):
            return self.refusal("bad-length", f"masked {len(m['masked'])}")
        for j, v in enumerate(rest):
            if not Verify(self.people[v - 1][2], m["masked"][64 * j : 64 * j + 64], H("masked", self.c2, u4(v))):
                return self.refusal("equivocation")
        op = [opened(b, self.owns, self.u3, W, self.orgs, self.terms, self.c, self.M) for b in self.blocks]
        shares = b""
        for v in self.u2:
            if v not in self.sn:
                continue
            for k in (
                [b for b, o in zip(self.blocks, op, strict=False) if o and b in self.owns[v]]
                if v in self.u3
                else [None]
            ):
                shares += self.held[v].get(k, NO_SHARE)
        flags = bitmap(op)
        return encode(
            "RevealedShares",
            context=self.c3,
            opened=flags,
            shares=shares,
            tag=Tag(self.reply_key, 4, self.c3, flags, shares),
        )
