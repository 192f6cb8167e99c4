"""A reader of package format 1, written from ``schemas/SPEC-v1.md`` alone: standard library, NumPy, zstandard.

It shares no line with ``paramdelta_hub``, nor its library for digests; the two agree only if the specification says
what the product does. The marks (§) point into the specification. Simple, not fast: whole tensors in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import zstandard

from tests.support.blake3_numpy import blake3

CHUNK = 1_048_576
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
WIDE = {"BF16": np.dtype("<f4"), "F16": np.dtype("<f4"), "F32": np.dtype("<f8")}
FIELDS = {
    "manifest": "format format_version name version license created_by relabeled_from base post architecture "
    "exactness configs cast given_up taken_up renames layouts ties omissions shards lineage companions tensors",
    "earlier": "id name version",
    "source": "name commit files dtypes tied_embeddings tokenizer_sha256",
    "architecture": "model_type classes fingerprint",
    "exactness": "exact elements changed exceptions",
    "file": "path size sha256",
    "config": "patch reverse",
    "rows": "base runs",
    "record": "name base_name post_name dtype base_dtype post_dtype shape rows effect parts base_blake3 post_blake3 "
    "base_norm delta_norm changed exceptions",
    "part": "chunks codec shard nbytes blake3",
}
COMPONENT = r"[A-Za-z0-9_-]([A-Za-z0-9._-]{0,253}[A-Za-z0-9_-])?"
PATH = re.compile(rf"{COMPONENT}(/{COMPONENT}){{0,3}}")
DEVICE = re.compile(r"(^|/)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|/|$)", re.IGNORECASE)


class RefusedError(Exception):
    """The package breaks the rule of the message."""


def require(condition: object, rule: str) -> None:
    if not condition:
        raise RefusedError(rule)


# §3.1 and §4: JSON and safetensors


def parse_json(text: bytes) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        require(len(dict(pairs)) == len(pairs), "§3.1 a key stands twice")
        return dict(pairs)

    def number(digits: str) -> float:
        require(math.isfinite(float(digits)), "§3.1 a number overflows")
        return float(digits)

    def integer(digits: str) -> int:
        require(len(digits) <= 20 and -(2**63) <= int(digits) < 2**64, "§3.1 an integer outside 64 bits")
        return int(digits)

    def constant(name: str) -> None:
        require(False, f"§3.1 {name}")

    try:
        value = json.loads(
            text.decode(), object_pairs_hook=unique, parse_float=number, parse_int=integer, parse_constant=constant
        )
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"§3.1 {error}") from None
    return value


def read_safetensors(content: bytes) -> tuple[dict[str, str], dict[str, tuple[str, list[int], bytes]]]:
    """Return the metadata and (dtype, shape, bytes) of every tensor."""
    length = int.from_bytes(content[:8], "little")
    require(len(content) >= 8 and length <= min(len(content) - 8, 2**25), "§4 header length")
    header = parse_json(content[8 : 8 + length])
    require(isinstance(header, dict), "§4 header")
    metadata = header.pop("__metadata__", {})
    tensors, position = {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        require(entry.keys() == {"dtype", "shape", "data_offsets"} and entry["dtype"] in ITEM_SIZES, "§4 header entry")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        nbytes = math.prod(entry["shape"]) * ITEM_SIZES[entry["dtype"]]
        require(start == position and end - start == nbytes and end <= len(content), "§4 holes, overlaps or truncation")
        tensors[name] = (entry["dtype"], entry["shape"], content[start:end])
        position = end
    require(position == len(content), "§4 the tensors fill the data area")
    return metadata, tensors


# §5: streams


def frame(stream: bytes, size: int) -> np.ndarray:
    try:
        head = zstandard.get_frame_parameters(stream)
        require(head.content_size == size and size > 0, "§5 a frame's content size")
        require(head.has_checksum and not head.dict_id, "§5 a frame has a checksum and no dictionary")
        require(head.window_size <= 2**23, "§5 a frame's window")
        content = zstandard.ZstdDecompressor().decompress(stream, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RefusedError(f"§5 {error}") from None
    require(len(content) == size, "§5 a frame's content")
    return np.frombuffer(content, np.uint8)


def planes(streams: list[bytes], count: int) -> np.ndarray:
    out = np.zeros((count, len(streams)), np.uint8)
    for index, stream in enumerate(streams):
        if stream:
            out[:, index] = frame(stream, count)
    return out.reshape(-1).view(f"<u{len(streams)}")


def replacing(codec: str, streams: list[bytes], count: int, width: int) -> np.ndarray:
    if codec == "raw":
        require(len(streams[0]) == count * width, "§5 raw")
        return np.frombuffer(streams[0], f"<u{width}")
    return planes(streams, count)


def sparse(streams: list[bytes], count: int) -> tuple[np.ndarray, np.ndarray]:
    width = len(streams) - 1
    if not streams[0]:
        require(not any(streams), "§5 numbers without positions")
        return np.empty(0, np.int64), np.empty(0, f"<u{width}")
    listed = positions(streams[0], count)
    return listed, planes(streams[1:], listed.size)


def positions(stream: bytes, count: int) -> np.ndarray:
    size = zstandard.get_frame_parameters(stream).content_size
    require(1 <= size <= count, "§5 gaps")
    gaps = frame(stream, size).astype(np.int64)
    ends = gaps < 255
    require(ends[-1], "§5 the last gap ends")
    found = np.cumsum(gaps + ends)[ends] - 1
    require(found[-1] < count, "§5 the last position")
    return found


# §5.1: tANS


class BitReader:
    """Bits of a byte string, the least significant first."""

    def __init__(self, content: bytes, position: int = 0) -> None:
        self.content, self.position = content, position

    def bits(self, count: int) -> int:
        first, shift = divmod(self.position, 8)
        self.position += count
        require(self.position <= 8 * len(self.content), "§5.1 bits that are not there")
        return int.from_bytes(self.content[first : (self.position + 7) // 8], "little") >> shift & ((1 << count) - 1)

    def list(self, count: int) -> list[int]:
        r, found = self.bits(4), []
        for _ in range(count):
            z = 0
            while not self.bits(1):
                z += 1
                require(z + r <= 61, "§5.1 a number of a list")
            found.append((((1 << z) | self.bits(z)) - 1) << r | self.bits(r))
        return found

    def signed(self, count: int) -> list[int]:
        return [-(number + 1) // 2 if number % 2 else number // 2 for number in self.list(count)]


@dataclass
class Symbol:
    """What an element of it is made of, and what is left to its raw field: ``fixed | rest << shift | sign``."""

    fixed: int
    raw: int
    shift: int


def read_symbols(table: BitReader, e: int, m: int) -> list[Symbol]:
    width, symbols = 1 + e + m, []
    counts = table.list(16 - e)
    require(sum(counts) <= 4096, "§5.1 symbols")
    gaps = iter(table.list(sum(counts)))
    signs = iter(table.list(sum(counts)))
    for n, count in enumerate(counts):
        string = -1
        for _ in range(count):
            string += 1 + next(gaps)
            require(string < ((1 << e) - 1) << max(n - 1, 0), "§5.1 an exact symbol's exponent")
            which = next(signs)
            require(which <= 2, "§5.1 signs")
            for sign in ((0, 1), (0,), (1,))[which]:
                fixed = string << (m - max(n - 1, 0)) | (1 << (m - n) if n else 0) | sign << (width - 1)
                symbols.append(Symbol(fixed, 0, 0))
    require(len(symbols) < 4096, "§5.1 symbols")
    counts = table.list(m + 1)
    require(sum(counts) <= min(255 if width == 32 else 4095, 4095 - len(symbols)), "§5.1 bins")
    changes, gaps = iter(table.signed(sum(counts))), iter(table.list(sum(counts)))
    for n, count in enumerate(counts):
        length, end, depth = e, 0, e + max(n - 1, 0)
        for _ in range(count):
            length += next(changes)
            require(0 <= length <= depth, "§5.1 a bin's length")
            size = 1 << (depth - length)
            prefix = -(-end // size) + next(gaps)
            require(prefix < 1 << length, "§5.1 a bin's prefix")
            end = (prefix + 1) * size
            fixed = prefix << (width - 1 - length) | (1 << (m - n) if n else 0)
            symbols.append(Symbol(fixed, 1 + depth - length, m - max(n - 1, 0)))
    return [*symbols, Symbol(0, width, 0)]


def read_frequencies(table: BitReader, symbols: int) -> list[int]:
    found = list(itertools.accumulate(table.signed(symbols)))
    require(all(0 <= frequency <= 4096 for frequency in found), "§5.1 a frequency")
    require(sum(found) == 4096, "§5.1 frequencies")
    return found


def states_of(frequencies: list[int]) -> list[tuple[int, int, int]]:
    """Return each state's symbol, how many bits are read, and what they are added to."""
    symbol_of, p = [0] * 4096, 0
    for symbol, frequency in enumerate(frequencies):
        for _ in range(frequency):
            symbol_of[p] = symbol
            p = (p + 2563) % 4096
    x, states = list(frequencies), []
    for symbol in symbol_of:
        b = 13 - x[symbol].bit_length()
        states.append((symbol, b, (x[symbol] << b) - 4096))
        x[symbol] += 1
    return states


@lru_cache(maxsize=64)
def tans(stream: bytes, count: int, width: int) -> np.ndarray:
    """Decode ``count`` values of ``width`` bits. They are remembered: a delta is added to many targets."""
    e, m = (8, 23) if width == 32 else (11, 52)
    require(len(stream) >= 24, "§5.1 the head")
    lengths = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(3)]
    limits = [12 * (-(-count // 2)), 12 * (count // 2), width * count]
    require(all(length <= limit for length, limit in zip(lengths, limits, strict=True)), "§5.1 lengths")
    nbytes = [-(-length // 8) for length in lengths]
    ends = [len(stream) - nbytes[1] - nbytes[2], len(stream) - nbytes[2], len(stream)]
    start = ends[0] - nbytes[0]
    require(start >= 24, "§5.1 lengths")
    table = BitReader(stream[24:start])
    c = table.bits(2)
    require(c <= 2, "§5.1 classes")
    symbols = read_symbols(table, e, m)
    states = [states_of(read_frequencies(table, len(symbols))) for _ in range(1 << c)]
    classes = [table.bits(c) for _ in range(-(-count // 256))]
    require(table.bits(-table.position % 8) == 0 and table.position == 8 * (start - 24), "§5.1 the table's end")
    firsts = [8 * ends[0] - lengths[0], 8 * ends[1] - lengths[1], 8 * ends[1]]
    streams = [BitReader(stream, first) for first in firsts]
    current = [int.from_bytes(stream[12:24], "little") >> 12 * i & 4095 for i in range(8)]
    out = np.empty(count, f"<u{width // 8}")
    for i in range(count):
        number, b, base = states[classes[i // 256]][current[i % 8]]
        current[i % 8] = base + streams[i % 2].bits(b)
        symbol = symbols[number]
        raw = streams[2].bits(symbol.raw)
        if symbol.raw == width:
            out[i] = raw
        else:
            out[i] = symbol.fixed | raw >> 1 << symbol.shift | (raw & 1) << (width - 1)
    require(not any(current), "§5.1 the last states are 0")
    used = [reader.position - first for reader, first in zip(streams, firsts, strict=True)]
    require(used == lengths, "§5.1 streams are used up")
    out.setflags(write=False)
    return out


def values(streams: list[bytes], count: int, width: int) -> np.ndarray:
    """Decode a chunk of Δ, as bits."""
    if not streams[0]:
        return tans(streams[1], count, width)
    coded = positions(streams[0], count)
    out = np.zeros(count, f"<u{width // 8}")
    out[coded] = tans(streams[1], coded.size, width)
    return out


# §6: arithmetic


def widen(dtype: str, bits: np.ndarray) -> np.ndarray:
    if dtype == "BF16":
        return (bits.astype("<u4") << np.uint32(16)).view("<f4")
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return bits.view("<f2" if dtype == "F16" else "<f4").astype(WIDE[dtype])


def narrow(dtype: str, wide: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even; BF16 by its definition, in integers."""
    if dtype == "BF16" and wide.dtype.itemsize == 8:
        return nearest_bf16(wide)
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return wide.astype("<f2" if dtype == "F16" else "<f4").view("<u2" if dtype == "F16" else "<u4")
    bits = wide.view("<u4")
    kept, dropped = bits >> np.uint32(16), bits & np.uint32(0xFFFF)
    up = (dropped > 0x8000) | ((dropped == 0x8000) & (kept % 2 == 1))
    return (kept + up).astype("<u2")


def nearest_bf16(wide: np.ndarray) -> np.ndarray:
    """Round binary64 to BF16 once: of the two numbers around a value the nearer, of two as near the even one."""
    with np.errstate(over="ignore", invalid="ignore"):
        below = (np.abs(wide).astype("<f4").view("<u4") >> np.uint32(16)).astype("<u4")
        below -= widen("BF16", below).astype("<f8") > np.abs(wide)  # binary32 may have been rounded up
        low, high = (widen("BF16", bits).astype("<f8") for bits in (below, below + np.uint32(1)))
        high = np.where(np.isinf(high), 2.0**128, high)  # as if the exponent went on
        low_gap, high_gap = np.abs(wide) - low, high - np.abs(wide)
    up = (high_gap < low_gap) | ((high_gap == low_gap) & (below % 2 == 1))
    return ((below + up) | (np.signbit(wide).astype("<u4") << np.uint32(15))).astype("<u2")


@dataclass
class Chunk:
    """One chunk of an ``add`` tensor: Δ in the wide type, exceptions, and the digest that makes them apply."""

    delta: np.ndarray
    exceptions: np.ndarray
    exact: np.ndarray
    base_digest: bytes


class SpecPackage:
    """A package, read whole and checked on opening."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "manifest.json").read_bytes()
        self.id = hashlib.sha256(text).hexdigest()
        self.manifest = parse_json(text)
        check_manifest(self.manifest)
        files = {}
        for file in list_files(self.manifest):
            require(not (folder / file["path"]).is_symlink(), "§2 a symbolic link")
            content = files[file["path"]] = (folder / file["path"]).read_bytes()
            require(len(content) == file["size"], "§9 a file's size")
            require(hashlib.sha256(content).hexdigest() == file["sha256"], "§9 a file's digest")
        self.records = {record["name"]: record for record in self.manifest["tensors"]}
        self.payloads = {}
        for shard in self.manifest["shards"]:
            _, tensors = read_safetensors(files[shard["path"]])
            mine = {
                name: part
                for name, record in self.records.items()
                for part in record["parts"]
                if part["shard"] == shard["path"]
            }
            require(mine.keys() == tensors.keys(), "§4 a shard's tensors are its records")
            for name, (dtype, shape, payload) in tensors.items():
                require((dtype, shape) == ("U8", [mine[name]["nbytes"]]), "§4 a payload's size")
                self.payloads[name, shard["path"]] = payload
        self.lineage = read_safetensors(files[self.manifest["lineage"]["path"]])[1]

    def streams(self, name: str) -> list[tuple[int, str, list[bytes]]]:
        """Cut payloads (§4): for every chunk, how many elements it has, its codec, and its streams."""
        record, found = self.records[name], []
        elements = math.prod(record["shape"])
        for part in record["parts"]:
            cut = [[]] * part["chunks"] if part["codec"] == "zero" else self.chunks(record, part)
            for streams in cut:
                found.append((min(CHUNK, elements - len(found) * CHUNK), part["codec"], streams))
        return found

    def chunks(self, record: dict, part: dict) -> list[list[bytes]]:
        """Cut a payload (§4): return the streams of each chunk."""
        payload, count, width = (
            self.payloads[record["name"], part["shard"]],
            part["chunks"],
            ITEM_SIZES[record["dtype"]],
        )
        columns = {"tans": 4 + width, "planes": width, "raw": 1}[part["codec"]]
        wide = WIDE[record["dtype"]].itemsize if record["effect"] == "add" else 0
        body = len(payload) - (4 * columns + 32) * count
        require(body >= 0, "§4 the chunk table")
        table = payload[body:]
        require(blake3(table).hex() == part["blake3"], "§9 a chunk table")
        chunks, position = [], 0
        for number in range(count):
            row = table[number * (4 * columns + 32) :][: 4 * columns + 32]
            lengths = np.frombuffer(row[: 4 * columns], "<u4").astype(int)
            require(lengths.sum() <= 2**20 * (width + wide + 4) + 2**17, "§4 an impossible chunk")
            chunk = payload[position : min(position + lengths.sum(), body)]
            require(blake3(chunk) == row[4 * columns :], "§9 a chunk")
            ends = np.cumsum(lengths).tolist()
            chunks.append([chunk[start:end] for start, end in itertools.pairwise([0, *ends])])
            position += ends[-1]
        require(position == body, "§4 the lengths add up")
        return chunks

    def added(self, name: str) -> list[Chunk]:
        """Decode an ``add`` tensor."""
        record = self.records[name]
        wide, none = WIDE[record["dtype"]], np.empty(0, int)
        width, chunks = ITEM_SIZES[record["dtype"]], []
        for count, codec, streams in self.streams(name):
            if codec == "zero":
                chunks.append(Chunk(np.zeros(count, wide), none, none, b""))
                continue
            digest, exceptions = streams[-1], sparse(streams[-2 - width : -1], count)
            require(len(digest) == (32 if exceptions[0].size else 0), "§6 exceptions and base's digest")
            delta = values(streams[:2], count, 8 * wide.itemsize).view(wide)
            chunks.append(Chunk(delta, *exceptions, digest))
        return chunks

    def replaced(self, name: str) -> bytes:
        """Decode a ``replace`` tensor that is not ``zero``: post's values."""
        width = ITEM_SIZES[self.records[name]["dtype"]]
        found = (replacing(codec, streams, count, width) for count, codec, streams in self.streams(name))
        return b"".join(values.tobytes() for values in found)


def tensor_digest(values: bytes, dtype: str) -> str:
    """Return the digest of a tensor's values (§9)."""
    width = CHUNK * ITEM_SIZES[dtype]
    return blake3(b"".join(blake3(values[start : start + width]) for start in range(0, len(values), width))).hex()


def cast(values: bytes, dtype: str, to: str) -> bytes:
    """Return float values in another dtype, each rounded once (§6)."""
    bits = np.frombuffer(values, f"<u{ITEM_SIZES[dtype]}")
    return values if dtype == to else narrow(to, widen(dtype, bits)).tobytes()


def add_across(target: bytes, summands: list[tuple[SpecPackage, str, float]], dtype: str, result: str) -> bytes:
    """Return target ⊕ Σ wᵢΔᵢ (§6) where not all dtypes are equal."""
    records = [package.records[name] for package, name, _ in summands]
    if len(summands) == 1 and summands[0][2] == 1:
        there = cast(target, dtype, records[0]["dtype"])
        digest = tensor_digest(there, records[0]["dtype"])
        is_base = digest == records[0]["base_blake3"] and cast(there, records[0]["dtype"], dtype) == target
        if is_base:
            return cast(add(there, summands), records[0]["dtype"], result)
    wide = np.dtype("<f8" if "F32" in {dtype, result, *(record["dtype"] for record in records)} else "<f4")
    target_bits = np.frombuffer(target, f"<u{ITEM_SIZES[dtype]}")
    total = widen(dtype, target_bits).astype(wide)
    kept = ~np.isfinite(total)
    for package, name, weight in summands:
        delta = np.concatenate([np.empty(0, wide), *(chunk.delta.astype(wide) for chunk in package.added(name))])
        with np.errstate(over="ignore", invalid="ignore"):
            addend = delta if weight == 1 else wide.type(weight) * delta
            total = total + addend
        kept &= addend == 0
    bits = narrow(result, total)
    require((np.isfinite(widen(result, bits)) | kept).all(), "§6 the result is not finite")
    if result == dtype:
        bits = np.where(kept, target_bits, bits)
    return bits.tobytes()


def add(
    target: bytes,
    summands: list[tuple[SpecPackage, str, float]],
    dtype: str | None = None,
    result: str | None = None,
) -> bytes:
    """Return target ⊕ Σ wᵢΔᵢ (§6) for one tensor's bytes; a summand is a package, the tensor's name in it, a weight.

    Where they are not the deltas', ``dtype`` is the target's and ``result`` the result's.
    """
    left = [(package, name, weight) for package, name, weight in summands if weight != 0]
    dtypes = {p.records[n]["dtype"] for p, n, _ in left} | {dtype, result or dtype} - {None}
    if len(dtypes) > 1:
        assert dtype is not None
        return add_across(target, left, dtype, result or dtype)
    if not left:
        return target
    record = left[0][0].records[left[0][1]]
    dtype = record["dtype"]
    if record["effect"] == "replace":
        carried = {
            p.replaced(n)
            for p, n, weight in left
            if weight > 0 and any(part["codec"] != "zero" for part in p.records[n]["parts"])
        }
        require(len(carried) <= 1, "§6 two deltas carry different values")
        return carried.pop() if carried else target
    width, out = ITEM_SIZES[dtype], []
    for index, chunks in enumerate(zip(*(package.added(name) for package, name, _ in left), strict=True)):
        piece = target[index * CHUNK * width : (index + 1) * CHUNK * width]
        target_bits = np.frombuffer(piece, f"<u{width}")
        total = widen(dtype, target_bits)
        kept = ~np.isfinite(total)
        for chunk, (_, _, weight) in zip(chunks, left, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                addend = chunk.delta if weight == 1 else WIDE[dtype].type(weight) * chunk.delta
                total = total + addend
            kept &= addend == 0
        is_base = bool(chunks[0].base_digest) and blake3(piece) == chunks[0].base_digest
        overflow = ~np.isfinite(total) & ~kept
        bits = np.where(kept, target_bits, narrow(dtype, total))
        if len(left) == 1 and left[0][2] == 1 and is_base:
            bits[chunks[0].exceptions] = chunks[0].exact
            kept[chunks[0].exceptions] = False
            overflow[chunks[0].exceptions] = False
        finite = np.isfinite(widen(dtype, bits)) | kept
        require(not overflow.any() and finite.all(), "§6 the result is not finite")
        out.append(bits.tobytes())
    return b"".join(out)


def lineage_places(name: str, elements: int) -> np.ndarray:
    """Return the sampled positions of a tensor (§8)."""
    if elements <= 256:
        return np.arange(elements)
    draws = hashlib.shake_128(name.encode()).digest(128)
    starts = sorted(int.from_bytes(draws[i : i + 8], "little") % (elements - 15) for i in range(0, 128, 8))
    return np.concatenate([np.arange(start, start + 16) for start in starts])


def fingerprint(shapes: dict[str, list[int]]) -> str:
    """Return an architecture's fingerprint (§7)."""
    scales = {f"{name}{end}" for name in shapes for end in ("_scale", "_scale_inv")}
    derived = re.compile(r"(^|\.)(position_ids|inv_freq)$")
    kept = {name: shape for name, shape in shapes.items() if name not in scales and not derived.search(name)}
    lines = sorted((name.encode(), b"x".join(b"%d" % n for n in shape)) for name, shape in kept.items())
    return hashlib.sha256(b"".join(name + b"\t" + shape + b"\n" for name, shape in lines)).hexdigest()


# §2 and §3: the manifest


def list_files(manifest: dict) -> list[dict]:
    return [*manifest["shards"], manifest["lineage"], *manifest["companions"]]


def check_manifest(manifest: object) -> None:
    require(isinstance(manifest, dict) and manifest.get("format") == "paramdelta", "§3 format")
    version = manifest.get("format_version")
    require(type(version) is int and version == 1, f"§10 unknown format version {version}")
    fields(manifest, "manifest")
    for source in (manifest["base"], manifest["post"]):
        fields(source, "source")
        texts(source["name"], *source["dtypes"], *(file["path"] for file in source["files"]))
    fields(manifest["architecture"], "architecture")
    texts(manifest["architecture"]["model_type"], *manifest["architecture"]["classes"])
    fields(manifest["exactness"], "exactness")
    require(manifest["cast"] in {None, *WIDE}, "§3.2 cast")
    texts(manifest["name"], manifest["license"], manifest["created_by"])
    require(len(manifest["relabeled_from"]) <= 100, "§3.2 relabeled_from")
    for earlier in manifest["relabeled_from"]:
        fields(earlier, "earlier")
        texts(earlier["name"])
        require(re.fullmatch("[0-9a-f]{64}", earlier["id"]), "§3.2 sha256")
    texts(*(text for omission in manifest["omissions"] for text in omission.values()))
    texts(*(rename["pattern"] for rename in manifest["renames"]), *manifest["layouts"])
    paths = [name.casefold() for name in ("manifest.json", "README.md", "manifest.json.sig")]
    for file in list_files(manifest):
        fields(file, "file")
        require(PATH.fullmatch(file["path"]) and not DEVICE.search(file["path"]), "§2 an unsafe path")
        require(re.fullmatch("[0-9a-f]{64}", file["sha256"]), "§3.2 sha256")
        paths.append(file["path"].casefold())
    require(len(set(paths)) == len(paths), "§2 paths collide")
    count = len(manifest["shards"])
    names = [f"delta-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    require([shard["path"] for shard in manifest["shards"]] == names, "§2 the shards' names")
    used = {part["shard"] for record in manifest["tensors"] for part in record["parts"]}
    require(used - {None} == set(names), "§3.2 the shards' tensors")
    require(manifest["lineage"]["path"] == "lineage.safetensors", "§2 the lineage file's name")
    for file in manifest["companions"]:
        require(re.fullmatch(r"companions/.*\.(json|jinja|txt|model)", file["path"]), "§2 companions")
    names = r"((generation|scheduler|sentence_bert)_)?config\.json|config_sentence_transformers\.json"
    require(len(manifest["configs"]) <= 1000, "§3.2 configs")
    for name in manifest["configs"]:
        require(re.fullmatch(rf"([\w-][\w.-]*/){{0,3}}({names})", name, re.ASCII), "§3.2 configs")
    for change in manifest["configs"].values():
        check_change(change)
    for record in manifest["tensors"]:
        check_record(record)
    require(len({record["name"] for record in manifest["tensors"]}) == len(manifest["tensors"]), "§3.2 names")
    names = {record["name"] for record in manifest["tensors"]}
    for name, first in manifest["ties"].items():
        texts(name, first)
        require(0 < len(name.encode()) <= 1024, "§3.3 a name's length")
        require(name not in names and first in names, "§3.2 ties")
    totals = {key: sum(r[key] for r in manifest["tensors"]) for key in ("changed", "exceptions")}
    totals |= {"exact": True, "elements": sum(math.prod(record["shape"]) for record in manifest["tensors"])}
    require(totals == manifest["exactness"] and manifest["exactness"]["exact"] is True, "§3.2 exactness")


def check_rows(record: dict) -> None:
    end, last = 0, "none yet"
    for first, source, number in record["rows"]["runs"]:
        require(first == end and 1 <= number <= record["shape"][0] - end, "§12 runs follow each other")
        require(source is None or 0 <= source <= record["rows"]["base"] - number, "§12 a run's source")
        require(source != last, "§12 two runs that are one")
        end, last = end + number, None if source is None else source + number
    require(end == record["shape"][0], "§12 runs cover the rows")


def logical_rows(record: dict) -> list[int | None]:
    """Return, for every row of the tensor, base's row (§12), or None."""
    check_rows(record)
    runs = record["rows"]["runs"]
    return [None if source is None else source + row for _, source, number in runs for row in range(number)]


def logical_base(record: dict, base: np.ndarray) -> np.ndarray:
    """Return base's rows, as bits, in the order of the record (§12)."""
    if record["rows"] is None:
        return base
    out = np.zeros((record["shape"][0], *base.shape[1:]), base.dtype)
    for row, source in enumerate(logical_rows(record)):
        if source is not None:
            out[row] = base[source]
    return out


def check_record(record: dict) -> None:
    fields(record, "record")
    name, dtype, effect, parts = record["name"], record["dtype"], record["effect"], record["parts"]
    require(0 < len(name.encode()) <= 1024, "§3.3 a name's length")
    texts(name, record["base_name"], record["post_name"])
    sides = {record["base_dtype"], record["post_dtype"]}
    require(sides == {dtype} or (sides < WIDE.keys() and len(sides) == 2 and dtype == "F32"), "§3.3 dtypes")
    require(effect == ("add" if dtype in WIDE else "replace") and dtype in ITEM_SIZES.keys() - {"F64"}, "§3.3 effect")
    for part in parts:
        check_part(part, effect)
    require(sum(part["chunks"] for part in parts) == -(-math.prod(record["shape"]) // CHUNK), "§3.3 the parts' chunks")
    shards = [part["shard"] for part in parts if part["shard"] is not None]
    require(len(set(shards)) == len(shards), "§3.3 two parts in a shard")
    require(len(record["shape"]) <= 16 and math.prod(record["shape"]) <= 2**40, "§3.3 shape")
    if record["rows"] is not None:
        fields(record["rows"], "rows")
        require(record["shape"], "§12 a scalar has no rows")
        check_rows(record)
    counts = (record["changed"], record["exceptions"])
    require(all(type(count) is int and 0 <= count <= math.prod(record["shape"]) for count in counts), "§3.3 counts")
    is_zero = not shards
    require(effect == "add" or len(shards) in {0, len(parts)}, "§3.3 zero stands alone")
    if is_zero:
        require(record["base_blake3"] == record["post_blake3"] and record["changed"] == 0, "§3.3 zero")
    if is_zero or effect == "replace":
        require(record["exceptions"] == 0, "§3.3 counts")


def check_part(part: dict, effect: str) -> None:
    fields(part, "part")
    require(part["codec"] in ({"zero", "tans"} if effect == "add" else {"zero", "planes", "raw"}), "§5 codec")
    require(type(part["chunks"]) is int and part["chunks"] >= 1, "§3.3 a part's chunks")
    payload = (part["shard"], part["nbytes"], part["blake3"])
    if part["codec"] == "zero":
        require(payload == (None, 0, None), "§3.3 zero")
    else:
        require(None not in payload and part["nbytes"] > 0, "§3.3 a payload")


def check_change(change: dict) -> None:
    fields(change, "config")
    require(change["patch"].keys() == change["reverse"].keys(), "§11 there and back")
    levels = [change["patch"], change["reverse"]]
    while levels:
        level = levels.pop()
        if isinstance(level, dict):
            require(not level.keys() & {"auto_map", "custom_pipelines"}, "§11 code")
            texts(*level)
            levels += level.values()
        elif isinstance(level, list):
            levels += level


def texts(*found: str | None) -> None:
    odd = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    require(not any(unicodedata.category(c) in odd for text in found for c in text or ""), "§3.2 a text's characters")


def fields(record: object, kind: str) -> None:
    require(isinstance(record, dict) and record.keys() == set(FIELDS[kind].split()), f"§3.1 the fields of a {kind}")
