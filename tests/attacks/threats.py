"""What can go wrong, what stands against it, and which tests show that: the source of the table in docs/security.md.

A test that produces a figure says so by :func:`shows`, with the numbers it itself uses;
``scripts/tools/make_tables.py`` gathers the figures and writes the table, and ``tests/attacks/test_table.py`` holds the
two together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.support.table_rows import F, makes_row

THREATS = {
    "path traversal": "names by a grammar (`A-Z a-z 0-9 . _ -`, joined by `/`, at most 4 deep, no leading or final "
    "dot, no device name), unique when case is ignored",
    "links, devices, FIFOs": "`O_NOFOLLOW`, regular files only; the Hub cache's own links must stay inside it",
    "decompression bombs": "a frame must declare just the size that its chunk has, carry a checksum, need no "
    "dictionary and no window above 8 MiB, all checked before it is decoded",
    "oversized JSON": "caps on bytes, values, depth and digits before parsing: `paramdelta_hub/limits.py`",
    "broken headers": "a strict check of our own: no duplicate, hole, overlap, overflow, unknown field or unsafe name",
    "hostile manifests": "strict, frozen, closed models over strict JSON, and every rule of the specification",
    "lying packages": "every length, count and position is checked against what it must add up to, before it is used",
    "tampering": "the digest of every file and payload in the manifest; the manifest's sha256 is the package's id; a "
    "closed world: no file that the manifest does not list",
    "mix-and-match of files": "the same digests",
    "downgrade, replaced versions": "an unknown format version is refused as such; a pulled version is pinned by id",
    "forged origin": "an optional signature over the manifest; trusted keys come from the user's configuration alone",
    "NaN, Inf, overflow": "what is equal in base and post stays as the target has it; else refused, naming tensor and "
    "count, before a result appears",
    "code": "no pickle, no `torch.load`, no `eval`, no process, no template rendered; companions by an allow-list, and "
    "none that names code",
    "forged terminal output": "texts with control, format or surrogate characters are refused, or shown as escapes",
    "wrong target": "names, shapes, dtypes and values are compared with base's before anything is written",
    "cut downloads, corrupt files": "size and sha256 of every file, before it gets its name",
    "kill −9, Ctrl-C": "`OUT.partial/`, receipts, and one rename at the end",
    "power loss": "every file, then every folder, is forced to disk before the rename that shows them",
    "full disk, I/O errors": "free space is checked first; every write can fail and be repeated",
    "concurrent writers": "a lock on the destination; a version is made visible once, by one rename, tag or claim",
    "Hub errors": "a limited number of retries, then a typed error; the same command resumes",
}
"""Every threat and its defence, in the order of the table."""


class Figure(NamedTuple):
    """What a test shows of a threat."""

    threat: str
    text: str
    file: str
    test: str


def shows(threat: str, figure: str) -> Callable[[F], F]:
    """Mark a test as one that produces ``figure`` for ``threat``; make it of the numbers that the test uses."""
    assert threat in THREATS, threat
    return makes_row("security", threat, figure)


ELSEWHERE = (
    Figure(
        "path traversal",
        "hostile names in an index: refused",
        "checkpoints/test_checkpoint.py",
        "test_hostile_names_in_an_index",
    ),
    Figure(
        "path traversal",
        "hostile names of repositories and versions: nothing outside touched",
        "registry/stores/test_stores.py",
        "test_hostile_names_of_repositories_and_versions",
    ),
    Figure(
        "cut downloads, corrupt files",
        "a pull cut at 200 offsets, from a folder and from a bucket: no file gets its name",
        "registry/stores/test_stores.py",
        "test_cut_at_200_offsets",
    ),
    Figure(
        "cut downloads, corrupt files",
        "what comes damaged over HTTP is fetched again, or refused",
        "registry/hub/test_registry.py",
        "test_damage_on_the_way_is_found_and_mended",
    ),
    Figure(
        "downgrade, replaced versions",
        "another content under a pulled version: refused",
        "registry/test_lockfile.py",
        "test_a_version_that_was_replaced_is_refused",
    ),
    Figure(
        "downgrade, replaced versions",
        "a lower version: only if it is named and allowed",
        "registry/test_lockfile.py",
        "test_a_lower_version_only_if_that_is_allowed",
    ),
    Figure(
        "forged origin",
        "every third byte of a signature changed: refused, or it means the same",
        "registry/test_signing.py",
        "test_every_changed_byte_of_a_signature_is_noticed",
    ),
    Figure(
        "forged origin",
        "a good signature of another package: refused",
        "registry/test_signing.py",
        "test_a_signature_of_another_package_does_not_fit",
    ),
    Figure(
        "forged origin",
        "a registry that serves an older signed version: noticed",
        "registry/test_signing.py",
        "test_a_registry_that_goes_back_is_noticed",
    ),
    Figure(
        "NaN, Inf, overflow",
        "in base or post where they differ, for each dtype: no package is made",
        "extraction/test_extract.py",
        "test_what_is_not_finite_is_refused_by_name_and_count",
    ),
    Figure(
        "kill −9, Ctrl-C",
        "extract, apply, publish, pull killed at 200 points each: the rerun gives the same, no partial shows",
        "robustness/test_kills.py",
        "test_killed_at_many_points",
    ),
    Figure(
        "kill −9, Ctrl-C",
        "Ctrl-C and SIGTERM at some 50 points each: likewise, with the promised exit status",
        "robustness/test_kills.py",
        "test_signals_at_many_points",
    ),
    Figure(
        "power loss",
        "the power cut after every call: what shows is whole, what was reported done is there",
        "robustness/test_power_loss.py",
        "test_at_any_moment",
    ),
    Figure(
        "full disk, I/O errors",
        "ENOSPC, EDQUOT, EIO, EINTR at every change: a clear error, and the rerun finishes",
        "robustness/test_faults.py",
        "test_each_change_fails_once",
    ),
    Figure(
        "full disk, I/O errors",
        "a file system that is really full, at 40 sizes: likewise",
        "robustness/test_faults.py",
        "test_a_full_disk",
    ),
    Figure(
        "concurrent writers",
        "50 races of two processes for one version: one wins, the other is told",
        "registry/stores/test_stores.py",
        "test_50_races",
    ),
    Figure(
        "concurrent writers",
        "50 races of three processes for one OUT: one wins, the others are told",
        "tasks/test_resume.py",
        "test_races",
    ),
    Figure(
        "Hub errors",
        "200 fault schedules end in success or a typed error",
        "registry/hub/test_registry.py",
        "test_schedules_of_faults_end_in_success_or_in_one_of_our_errors",
    ),
)
"""Figures that tests of other parts produce anyway; paths are below ``tests/``."""
