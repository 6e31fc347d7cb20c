""" "Graphs" and "Cohorts" of docs/protocol.md."""

import hashlib
import math
from fractions import Fraction
from math import comb

from tests.outsider.primitives import u4


# ---- graphs and cohorts (complete graphs)
def frac_ceil(f, n):

    return math.ceil(Fraction(f) * n - Fraction(1, 2**20))


def complete(n, corrupt):
    c = frac_ceil(corrupt, n)
    k = n - 1
    t = max(2 * k // 3 + 1, (k + c) // 2 + 1, c + 1)
    assert t <= k
    return k, t, c


def quorum(n, c, min_cohort):
    return max((n + c) // 2 + 1, min_cohort, c + 2)


def opens(orgs, min_cohort, c):
    """orgs: the organisation of each owner that is a witness."""
    return len(set(orgs)) >= min_cohort and all(sum(o != org for o in orgs) >= c + 1 for org in set(orgs))


def tail(N, M, k):
    """numerators of P[Hyp(N, M, k) >= j] for j = 0..k+1, over comb(N, k)"""
    out = [0] * (k + 2)
    for j in range(k, -1, -1):
        out[j] = out[j + 1] + comb(M, j) * comb(N - M, k - j)
    return out


def sharing(n, corrupt, dropout):
    if n <= 128:
        return complete(n, corrupt)[:2]
    c = frac_ceil(corrupt, n)
    d = frac_ceil(dropout, n)
    for k in range(2, min(1024, n - 2) + 1, 2):
        den = comb(n - 1, k)
        a = tail(n - 1, min(c, n - 1), k)
        t = next((t for t in range(2, k + 1) if n * a[t] << 81 <= den), None)
        if t is None:
            continue
        b = tail(n - 1, n - 1 - d, k)
        if n * (den - b[t]) << 20 <= den:
            return k, t
    return complete(n, corrupt)[:2]


def masking(m, c, G, dropout):
    """(k, t_b) or None: complete"""
    if m <= 128:
        return None
    B = 82 + (G - 1).bit_length()
    cb = min(c, m)
    d = frac_ceil(dropout, m)
    for k in range(4, min(1024, (m - 1) // 2) + 1, 2):
        den = comb(m - 1, k)
        iso = tail(m - 1, min(cb, m - 1), k)
        t1 = next((t for t in range(k + 1) if m * iso[t] << B <= den), None)
        if t1 is None:
            continue
        w = tail(m, cb, k // 2)
        dw = comb(m, k // 2)
        a = next((a for a in range(k // 2 + 2) if comb(m, 2) * w[a] ** 2 << B <= dw**2), None)
        if a is None:
            continue
        tb = max(t1, k // 2 + a)
        if tb > k:
            continue
        if m * (den - tail(m - 1, m - 1 - d, k)[tb]) << 20 <= den:
            return k, tb
    return None


def circle(ids, c1):
    return sorted(ids, key=lambda i: hashlib.sha256(c1 + u4(i)).digest())


def neighbours(order, k):
    n = len(order)
    return {
        v: sorted(order[(i + s) % n] for s in list(range(1, k // 2 + 1)) + list(range(-(k // 2), 0)))
        for i, v in enumerate(order)
    }


def graphs(u1, owns, blocks, c1, terms):
    """(sharing neighbours, t, c, {block: (masking neighbours, t_b or None)})"""
    n = len(u1)
    c = frac_ceil(terms["corrupt_fraction"], n)
    k, t = sharing(n, terms["corrupt_fraction"], terms["dropout_fraction"])
    order = circle(u1, c1)

    def full(ids):
        return {v: [x for x in ids if x != v] for v in ids}

    S = full(u1) if k == n - 1 else neighbours(order, k)
    M = {}
    own = {b: [v for v in u1 if b in owns[v]] for b in blocks}
    G = sum(len(o) > 128 for o in own.values())
    for b, o in own.items():
        d = masking(len(o), c, G, terms["dropout_fraction"])
        M[b] = (full(o), None) if d is None else (neighbours([v for v in order if v in o], d[0]), d[1])
    return S, t, c, M


def opened(b, owns, u3, W, orgs, terms, c, M):
    o = [v for v in u3 if b in owns[v]]
    nb, tb = M[b]
    return opens([orgs[v] for v in o if v in W], terms["min_cohort"], c) and (
        tb is None or all(sum(x in u3 for x in nb[v]) >= tb for v in o)
    )
