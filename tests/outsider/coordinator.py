"""A coordinator of the secure sum in full mode, written from docs/protocol.md alone; nothing of fedpeft is imported."""

import os
import struct

from tests.outsider.graphs import graphs, opened, quorum
from tests.outsider.messages import CONTEXTS, Bad, decode, encode
from tests.outsider.primitives import (
    DH,
    KDF,
    NO_SHARE,
    PRF,
    H,
    P,
    Sign,
    Stream,
    Tag,
    Verify,
    bitmap,
    interpolate,
    path,
    root_and_levels,
    u4,
    unbitmap,
    xpub,
)
from tests.outsider.vectors import decode_sum, nbytes, words_of


class Coordinator:
    def __init__(self, identity, participants, terms):
        """participants: [(device, organisation, identity public bytes)]; terms: RoundTerms without its roster."""
        self.sk, self.people = identity, participants
        rows = encode(
            "RosterRows",
            identities=b"".join(p[2] for p in participants),
            lengths=b"".join(struct.pack(">HH", len(p[0].encode()), len(p[1].encode())) for p in participants),
            names="".join(p[0] + p[1] for p in participants).encode(),
        )
        self.rows, self.terms = rows, dict(terms, roster=H("participants", rows))
        self.spec = encode("RoundTerms", **self.terms)
        self.chsk = os.urandom(32)
        self.channel = xpub(self.chsk)
        self.c0 = H("offer", self.spec, self.channel)
        self.blocks = {b["block_id"]: b for b in terms["blocks"]}
        self.excluded = {}
        self.adverts = {}

    def context(self, name):
        return getattr(self, CONTEXTS[name].lower())

    def offer(self, roster=True):
        return encode(
            "RoundOffer",
            spec=self.spec,
            roster=self.rows if roster else b"",
            coordinator_channel=self.channel,
            signature=Sign(self.sk, self.c0),
        )

    def D(self, i):
        a = self.adverts[i]
        return H(
            "advertise",
            self.c0,
            u4(i),
            a["device"],
            a["organisation"],
            u4(a["weight_class"]),
            *a["blocks"],
            "keys",
            a["channel_key"],
            a["mask_key"],
            self.commits(i),
        )

    def commits(self, i):
        return H("commitments", *self.adverts[i]["commitments"])

    def out(self, i, why):
        self.excluded[i] = why

    def on_advertise(self, i, raw):
        try:
            _, a = decode(raw, "Advertise")
        except Bad as e:
            return self.out(i, e)
        d, o, pk = self.people[i - 1]
        if (a["context"], a["participant_id"], a["device"], a["organisation"]) != (self.c0, i, d, o):
            return self.out(i, "names")
        order = [b for b in self.blocks if b in a["blocks"]]
        if (
            not a["blocks"]
            or a["blocks"] != order
            or len(a["commitments"]) != len(order)
            or not 0 <= a["weight_class"] <= 63
        ):
            return self.out(i, "blocks")
        self.adverts[i] = a
        if not Verify(pk, a["signature"], self.D(i)):
            del self.adverts[i]
            return self.out(i, "signature")
        return None

    # SHARE
    def share_requests(self):
        self.u1 = sorted(self.adverts)
        n = len(self.u1)
        self.owns = {i: self.adverts[i]["blocks"] for i in self.u1}
        self.orgs = {i: self.people[i - 1][1] for i in self.u1}
        leaves = [self.D(i) for i in self.u1]
        self.root, _ = root_and_levels(leaves)
        members = bitmap(i in self.adverts for i in range(1, len(self.people) + 1))
        classes = bytes(self.adverts[i]["weight_class"] for i in self.u1)
        owners = [bitmap(b in self.adverts[i]["blocks"] for i in self.u1) for b in self.blocks]
        self.c1 = H("roster", self.c0, members, self.root, classes, *owners)
        self.S, self.t, self.c, self.M = graphs(self.u1, self.owns, self.blocks, self.c1, self.terms)
        self.T = quorum(n, self.c, self.terms["min_cohort"])
        self.reply = {i: KDF(DH(self.chsk, self.adverts[i]["channel_key"]), self.c0, "reply") for i in self.u1}
        req = {}
        for i in self.u1:
            nb = sorted(set(self.S[i]).union(*(self.M[b][0][i] for b in self.owns[i])))
            req[i] = encode(
                "ShareRequest",
                context=self.context("ShareRequest"),
                members=members,
                root=self.root,
                classes=classes,
                owners=owners,
                neighbours=b"".join(
                    self.adverts[v]["channel_key"]
                    + self.adverts[v]["mask_key"]
                    + self.commits(v)
                    + self.adverts[v]["signature"]
                    for v in nb
                ),
                path=path(leaves, [self.u1.index(v) for v in [*nb, i]]),
            )
        self.cipher = {}
        return req

    def on_shares(self, i, raw):
        try:
            _, m = decode(raw, "EncryptedShares")
        except Bad as e:
            return self.out(i, e)
        size = 33 * (1 + len(self.adverts[i]["blocks"])) + 16
        if m["context"] != self.c1 or len(m["ciphertexts"]) != size * len(self.S[i]):
            return self.out(i, "length/context")
        if m["tag"] != Tag(self.reply[i], 1, self.c1, m["ciphertexts"]):
            return self.out(i, "tag")
        self.cipher[i] = {v: m["ciphertexts"][size * k : size * (k + 1)] for k, v in enumerate(self.S[i])}
        return None

    # MASK
    def map1(self, ids):
        return bitmap(i in ids for i in self.u1)

    def mask_requests(self):
        self.u2 = sorted(self.cipher)
        assert len(self.u2) > self.t
        self.c2 = H("sharers", self.c1, self.map1(self.u2))
        self.masked = {}
        return {
            i: encode(
                "MaskRequest",
                context=self.context("MaskRequest"),
                sharers=self.map1(self.u2),
                ciphertexts=[self.cipher[v][i] for v in self.S[i] if v in self.cipher],
            )
            for i in self.u2
        }

    def on_masked(self, i, raw):
        try:
            _, m = decode(raw, "MaskedInput")
        except Bad as e:
            return self.out(i, e)
        own = self.adverts[i]["blocks"]
        if m["context"] != self.c2 or [len(v) for v in m["vectors"]] != [nbytes(self.blocks[b]) for b in own]:
            return self.out(i, "length/context")
        if m["tag"] != Tag(self.reply[i], 2, self.c2, b"".join(map(u4, m["unopened"])), *m["vectors"]):
            return self.out(i, "tag")
        if not Verify(self.people[i - 1][2], m["signature"], H("masked", self.c2, u4(i))):
            return self.out(i, "signature")
        if m["unopened"] != sorted(set(m["unopened"]) & set(self.u2) & set(self.S[i])):
            return self.out(i, "unopened")
        self.masked[i] = m
        return None

    # CONSIST
    def consist_requests(self):
        self.u3 = sorted(self.masked)
        assert len(self.u3) > self.t
        self.c3 = H("survivors", self.c2, self.map1(self.u3))
        self.agreed = {}
        return {
            i: encode("ConsistRequest", context=self.context("ConsistRequest"), survivors=self.map1(self.u3))
            for i in self.u3
        }

    def on_agreement(self, i, raw):
        try:
            _, m = decode(raw, "Agreement")
        except Bad as e:
            return self.out(i, e)
        if m["context"] != self.c3 or m["tag"] != Tag(self.reply[i], 3, self.c3, m["signature"]):
            return self.out(i, "context/tag")
        if not Verify(self.people[i - 1][2], m["signature"], H("agree", self.c3, u4(i))):
            return self.out(i, "signature")
        self.agreed[i] = m["signature"]
        return None

    # REVEAL
    def reveal_requests(self):
        assert len(self.agreed) >= max(self.t, self.T), (len(self.agreed), self.t, self.T)
        signers = sorted(self.agreed)
        self.shares = {}
        self.opened = {}
        return {
            i: encode(
                "RevealRequest",
                context=self.context("RevealRequest"),
                survivors=self.map1(self.u3),
                signers=self.map1(signers),
                signatures=b"".join(self.agreed[v] for v in signers),
                masked=b"".join(
                    self.masked[v]["signature"] for v in self.u3 if v not in self.agreed and v in self.S[i]
                ),
            )
            for i in self.u3
        }

    def witnessing(self, b, i=None):
        w = set(self.agreed) | ({i} if i else set())
        return opened(b, self.owns, self.u3, w, self.orgs, self.terms, self.c, self.M)

    def on_revealed(self, i, raw):
        try:
            _, m = decode(raw, "RevealedShares")
        except Bad as e:
            return self.out(i, e)
        if m["context"] != self.c3 or m["tag"] != Tag(self.reply[i], 4, self.c3, m["opened"], m["shares"]):
            return self.out(i, "context/tag")
        want = [self.witnessing(b, i) for b in self.blocks]
        if unbitmap(m["opened"], len(self.blocks)) != want:
            return self.out(i, f"opened {m['opened'].hex()} {want}")
        keys = []
        for v in self.u2:
            if v not in self.S[i]:
                continue
            keys += (
                [(v, b) for b, o in zip(self.blocks, want, strict=False) if o and b in self.adverts[v]["blocks"]]
                if v in self.u3
                else [(v, None)]
            )
        if len(m["shares"]) != 33 * len(keys):
            return self.out(i, f"shares {len(m['shares']) / 33} {len(keys)}")
        self.shares[i] = {k: m["shares"][33 * j : 33 * j + 33] for j, k in enumerate(keys)}
        return None

    def secret(self, v, b):
        pts = [
            (i, int.from_bytes(s[v, b], "big")) for i, s in self.shares.items() if (v, b) in s and s[v, b] != NO_SHARE
        ]
        assert len(pts) >= self.t, "too few shares"
        assert all(y < P for _, y in pts)
        x = interpolate(pts[: self.t])
        if x >> 256:
            raise Bad("secret beyond 32 bytes")
        return x.to_bytes(32, "big")

    def unmask(self):
        gone = [v for v in self.u2 if v not in self.u3]
        sums = {}
        mk = {v: self.secret(v, None) for v in gone}
        for v in gone:
            assert xpub(mk[v]) == self.adverts[v]["mask_key"], "mask key"
        for b, blk in self.blocks.items():
            if not self.witnessing(b):
                sums[b] = None
                continue
            own = [v for v in self.u3 if b in self.adverts[v]["blocks"]]
            n = nbytes(blk)
            total = sum(
                (words_of(blk, self.masked[v]["vectors"][self.adverts[v]["blocks"].index(b)]) for v in own),
                start=words_of(blk, bytes(n)),
            )
            for v in own:
                seed = self.secret(v, b)
                assert (
                    H("commitment", self.c0, u4(v), b, seed)
                    == self.adverts[v]["commitments"][self.adverts[v]["blocks"].index(b)]
                ), "commitment"
                total = total - words_of(blk, Stream(PRF(seed, "self", self.c1 + b.encode()), n))
            for v in gone:
                if b not in self.adverts[v]["blocks"]:
                    continue
                for u in own:
                    if u not in self.M[b][0][v]:
                        continue
                    a, z = sorted([self.adverts[u]["mask_key"], self.adverts[v]["mask_key"]])
                    edge = KDF(DH(mk[v], self.adverts[u]["mask_key"]), self.c1, "edge", a, z)
                    pair = words_of(blk, Stream(PRF(edge, "pair", b), n))
                    total = total - pair if u < v else total + pair
            sums[b] = (decode_sum(blk, len(self.people), len(own), total), len(own), total)
        return sums
