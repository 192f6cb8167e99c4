"""Every cap in one place, each with its reason.

A package and a checkpoint come from strangers: whatever they declare is compared with these numbers before memory
is taken or time is spent. Raising a cap never makes an older file unreadable; lowering one can.
"""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

CHUNK_ELEMENTS = 1 << 20
"""Elements of one chunk, fixed by format 1. Measured: large enough that the tables of symbols cost 0.01 bits an element
(MiniLM, bfloat16), small enough that a chunk's buffers stay in the second-level cache."""

BLOCK_ELEMENTS = 1 << 18
"""Elements on which NumPy works at a time. Measured on two threads: 2**16 is best for the second-level cache, but
so short a call makes threads queue for the interpreter, and two are hardly faster than one (6.7 ns an element against
3.7 here); 2**20 falls out of every cache (5.2); whole tensors are 4–20 times slower."""

DIRECT_FROM_BYTES = 256 * MIB
"""A file of a result from which it is written past the page cache: what is smaller is soon read again, whole."""

HEADER_BYTES = 32 * MIB
"""A safetensors header, or an index. The library allows 100 MB, which takes seconds and gigabytes to parse; 91,000
tensors in one file would take 15 MB."""

MANIFEST_BYTES = 96 * MIB
"""A manifest: 91,000 tensors (DeepSeek-V3's count) take about 70 MB."""

JSON_VALUES, MANIFEST_VALUES = 1_000_000, 3_000_000
"""Values of any JSON we read, and of a manifest, counted before it is parsed: each costs a microsecond and up to 80
bytes as a Python object. 91,000 tensors make 0.8 million in a header and 2.2 million in a manifest."""

JSON_DEPTH = 32
"""Levels of nesting of any JSON we read. Headers need 3, manifests 6, configs of real models at most 8."""

TENSORS = 120_000
"""Tensors of a model: the largest published mixture of experts has 91,000."""

TENSOR_NAME_BYTES = 1024
"""A tensor's name, UTF-8. The longest in use are about 120."""

TENSOR_RANK = 16
"""Dimensions of a tensor. Stacked experts and convolutions need 5; NumPy stops at 64, torch at 64."""

TENSOR_ELEMENTS = 1 << 40
"""Elements of a tensor: keeps every product of shape and item size far below 2**63."""

DTYPES = 64
"""Types of elements of one model. safetensors knows 22."""

RECEIPT_BYTES = 256 * MIB
"""A receipt, which lists its task's tensors: as many as a manifest may, at worst."""

PLAN_BYTES, PLAN_VALUES = 1 * GIB, 64_000_000
"""A plan, and the values of one of its tasks. 91,000 tensors make 60 MB and 3 million; runs of rows, where several
deltas of large vocabularies are placed by token, may be as many again."""

FILES = 100_000
"""Files of a package or shards of a checkpoint."""

CONFIGS = 1000
"""Configs of a model and of its components in a manifest. The largest pipelines have some ten components."""

NAME_DEPTH = 4
"""Path components of a file inside a package."""

NAME_BYTES = 255
"""One path component: what every common file system takes."""

COMPANION_BYTES = 256 * MIB
"""A companion file. The largest tokenizers in use are about 35 MB."""

CONFIG_BYTES = 32 * MIB
"""A config, which is parsed whole: ``config.json``, ``tokenizer_config.json``, … The largest in use list every added
token and have some 2 MB."""

RENAMES = 1000
"""Rename rules, each of which is tried on every tensor's name, and recorded in the manifest."""

RELABELINGS = 100
"""How often a package may be relabeled, by which its manifest grows."""

RULES_BYTES = 1 * MIB
"""A file of rename and skip rules: every one of 1,000 rules (a manifest's most) could have a kilobyte."""

TOKENIZER_VALUES = 4_000_000
"""Values of a tokenizer's JSON, its merges left out. 262,144 tokens in a table make as many, 901,629 in a list with
scores (XLM-V) 2.7 million. Measured on a file like Gemma 3's (39 MiB, 1.9 million values with its merges): 1.4 s and
150 MB; with the merges parsed, 380 MB."""

VOCABULARY_ROWS = 1 << 22
"""Rows of an embedding, and ids of a tokenizer, where rows are matched by token. The largest in use are about a
million; each costs some 100 bytes."""

WINDOW_BYTES = 8 * MIB
"""Window a zstd frame may ask for, which caps what decoding it can allocate. Ours hold at most 1 MiB, one byte an
element of a chunk; a writer with larger windows gains nothing, but breaks no rule."""

LINEAGE_RUNS, LINEAGE_RUN_LENGTH = 16, 16
"""Values of base kept per tensor as evidence of lineage: 16 runs of 16 neighbours, so that reading them back costs
16 small reads instead of 256."""

LINEAGE_TENSORS = 512
"""Tensors whose samples are compared at apply. 512 × 256 values put the standard error of the mean correlation
of unrelated models below 0.003."""

REMOTE_LINEAGE_TENSORS, REMOTE_LINEAGE_RUNS = 32, 2
"""The same where every run is a request: 64 of them, and few runs of many tensors, because tensors differ more than
their parts do. Measured on the 69 trained models of docs/evidence.md: 1 − r differs by a factor of 1.13 (rms) from what
all samples give, and 65 lie in the same band of the prediction; the others at its edge."""

PAIR_LINEAGE_TENSORS = 4096
"""Tensors whose samples are compared at extract, where both models are read whole anyway: all matrices of a dense model
(Llama 3.1 405B has 884)."""

KIN_CORRELATION = 0.5
"""Mean correlation under which a target is refused as not kin. Measured: fine-tunes 0.99 and more, models of equal
shapes trained apart within ±0.05."""

FOREIGN_CORRELATION = 0.3
"""Correlation under which a tensor has nothing in common with base's. Measured on 256 samples: matrices of models
trained apart within ±0.16, of kin 0.53 and more (a pooler that was trained anew; all others 0.94). A Δ three times as
large as base still leaves 0.32."""

FOREIGN_SHARE, FOREIGN_SHARE_OF_ONE = 0.25, 0.5
"""Share of the parameters from which a model with foreign tensors is refused, of several; and above which, of one.
Measured: 0 of kin, 0.99 and more of strangers. New heads are named, and not refused: a classifier has a hundredth of a
model's parameters; an embedding with its head, under a tokenizer of 128,000, an eighth of 8 B."""

TASK_BYTES_MIN, TASK_BYTES_MAX, TASKS_WANTED = 32 * MIB, 4 * GIB, 64
"""A task reads about a 64th of the model, within these bounds: enough tasks to keep threads busy, few enough that a
package of a 1 TB model has hundreds of shards and not thousands."""

DEFAULT_MEMORY = 512 * MIB
"""Bytes of chunk buffers in flight unless ``--memory`` says otherwise."""

WORKER_BYTES = 64 * MIB
"""What one thread's buffers take at most: ``--memory`` divided by this bounds the threads."""

COPY_BYTES = 4 * MIB
"""Buffer for copying and hashing: the fastest size for pread here (6.8 GB/s)."""

EXPECTED_RATIO = {1: 1.0, 2: 0.65, 4: 0.85, 8: 1.0}
"""Size of a tensor's delta as a share of the tensor, by item size, assumed by the check of free space. Measured: real
16-bit pairs need 0.13–0.55, fp32 pairs 0.44–0.77."""

SCALE_BYTES = 64 * MIB
"""Scales of one fp8 tensor, as float32, held while it is read. A stack of 256 experts of 7168 rows with a scale a row
takes 7 MB."""

FACTOR_BYTES = 256 * MIB
"""A factor of an adapter's product, as float32, held while a tensor is read. Rank 256 of 152,000 tokens takes
156 MB."""

LOCK_BYTES = 32 * MIB
"""A pulled copy's lock: every file of a package (FILES at most) with its digest, at some 300 bytes."""

CARD_BYTES, SIGNATURE_BYTES = 4 * MIB, 1 * MIB
"""A model card, and a signature, which no manifest lists: both are text, of some kilobytes."""

KEY_BYTES, TRUSTED_KEYS = 64 * KIB, 1000
"""A key in PEM, which takes a few hundred bytes, and the keys that a user trusts: a slip can name any folder."""

PROVENANCE_BYTES = 128 * MIB
"""The provenance of a result: 91,000 tensors, and 45,000 fp8 scales left out, take 28 MB."""

CATALOG_BYTES = 4 * MIB
"""A catalog's list of its files: 2,001 pages, at some 200 bytes each."""

LARGEST_WEIGHT = 10.0
"""Weights of deltas, and factors for tensors, lie within ± this. Those in use are shares of 1, or a little above, and
negative ones take a delta back; 50 is a slip for 0.5."""

STORE_BLOCK_BYTES = 16 * MIB
"""Bytes asked of a bucket at a time: few enough requests to fill a fast line, and memory stays small."""

HEAT_MAP_ROWS = 24
"""Rows of a heat map: a model has about ten kinds of modules; one of other conventions may have hundreds of names."""

SPECTRUM_SIDE, SPECTRUM_MATRICES = 256, 64
"""Rows and columns drawn of a matrix to estimate its effective rank, and how many matrices at most. Measured: singular
values of 256 × 256 take 18 ms on one core, of 512 × 512 150 ms; low-rank adapters have ranks up to 256."""

COMPARED_DELTAS = 6
"""Deltas compared at a time: 15 pairs, and 6 chunks of at most 8 MiB in memory for each thread."""

CATALOG_DELTAS = 2_000
"""Deltas of a catalog: each has a page of some 100 kB, and on the Hub a request for its manifest."""

SILENT_SECONDS, SILENT_TRIES = 20.0, 2
"""How long a server of the Hub may be silent, and how often a request that reads is sent before we give up: a pull from
a server that never answers ends within a minute."""

SILENT_NOTE_SECONDS = 10.0
"""How long we wait for a server before we say so, and how often."""

COMMIT_SECONDS = 90.0
"""How long the Hub may be silent over a commit. Its own front end gives up after a minute."""

SLOW_SECONDS, SLOW_BYTES = 30.0, 30 * KIB
"""An answer of which fewer bytes than these come in so many seconds of waiting is given up."""

RETRY_TRIES, RETRY_SECONDS = 5, 60.0
"""How often a request is sent that a server refuses for a moment, and how long we wait for that in all. The Hub's own
limits last up to five minutes: then we say so."""
