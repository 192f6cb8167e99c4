"""Random alphabets and frequencies: any that the format allows, not those that an encoder would choose."""

from __future__ import annotations

import numpy as np

from paramdelta_hub.codecs.tans.alphabet import BINARY32, BINARY64, Alphabet, Binary

BINARY = {32: BINARY32, 64: BINARY64}
STATES = 4096


def random_alphabet(binary: Binary, exact: int, bins: int, seed: int) -> Alphabet:
    """Return an alphabet of about so many symbols: strings of every n, and prefixes that have none in common."""
    random = np.random.default_rng(seed)
    e = binary.exponent_bits
    symbols = set()
    for n in random.integers(0, binary.exact_bits + 1, exact).tolist():
        beyond = ((1 << e) - 1) << max(n - 1, 0)
        string = int(random.integers(0, beyond)) if random.random() < 0.7 else int(beyond - 1 - random.integers(3))
        symbols |= {(n, string, sign) for sign in range(2) if random.random() < 0.7}
    listed: list[tuple[int, int, int]] = []
    for n in sorted(random.integers(0, binary.fraction_bits + 1, bins).tolist()):
        depth = e + max(n - 1, 0)
        length = int(random.integers(0, depth + 1)) if random.random() < 0.3 else min(depth, e)
        prefix = int(random.integers(0, 1 << length, endpoint=False))
        low, high = prefix << (depth - length), (prefix + 1) << (depth - length)
        others = ((o, p << (depth + 0 - o), (p + 1) << (depth - o)) for m, o, p in listed if m == n)
        if all(high <= start or end <= low for _, start, end in others):
            listed.append((n, length, prefix))
    listed.sort(key=lambda bin_: (bin_[0], bin_[2] << (e + max(bin_[0] - 1, 0) - bin_[1])))
    return Alphabet(
        np.array(sorted(symbols), np.int64).reshape(-1, 3)[:3000],
        np.array(listed[: binary.most_bins], np.int64).reshape(-1, 3),
    )


def random_frequencies(symbols: int, rows: int, seed: int) -> np.ndarray:
    """Return rows that add up to 4,096: even, skewed, or one symbol alone."""
    random = np.random.default_rng(seed)
    found = np.zeros((rows, symbols), np.int64)
    for row in found:
        kind = random.integers(3)
        if kind == 0:
            row[random.integers(symbols)] = STATES
        else:
            shares = random.random(symbols) if kind == 1 else random.exponential(1.0, symbols) ** 4
            row[:] = random.multinomial(STATES, shares / shares.sum())
    return found
