"""Does it transfer? Train small models on this machine's processor, move their deltas, and score what comes out.

    python -m scripts.evidence.reproduce tiny --seed 0     models of 0.5 M parameters, 20 minutes of one core a seed
    python -m scripts.evidence.reproduce smol              SmolLM2-135M, 10 minutes of one core
    python -m scripts.evidence.reproduce minilm            a fine-tune that others made, one minute
    python -m scripts.evidence.reproduce report            docs/evidence.md and its figures, from what the others left

Needs Debian 12 (the texts are packages of its archive), this package, and
``pip install transformers tokenizers reasoning-gym matplotlib gguf accelerate``. Every finished run is kept at once, as
JSON in --results and as a model in --work: the same command goes on where it was stopped. Seeds may run side by side.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
ROOT = Path(__file__).resolve().parents[3]
EVIDENCE = ROOT / "scripts" / "evidence"
DEFAULT_WORK = ROOT / ".cache" / "reproduce"


def tiny(arguments: argparse.Namespace) -> None:
    from scripts.evidence.reproduce.tiny import Tiny

    sizes = {"base_steps": arguments.base_steps, "chat_steps": arguments.chat_steps, "asked": arguments.asked}
    experiment = Tiny(arguments.work, arguments.results, arguments.seed, **sizes)
    experiment.run()
    for other in arguments.stranger:
        experiment.add_to_stranger(arguments.work / "ckpt" / f"seed{other}" / "base")


def smol(arguments: argparse.Namespace) -> None:
    from scripts.evidence.reproduce.smol import Smol

    Smol(arguments.work, arguments.results, arguments.seed).run()


def minilm(arguments: argparse.Namespace) -> None:
    from scripts.evidence.reproduce.minilm import run_minilm

    run_minilm(arguments.work, arguments.results, json.loads((EVIDENCE / "sre_pairs.json").read_text()))


def report(arguments: argparse.Namespace) -> None:
    from scripts.evidence.reproduce.report import write_report

    write_report(arguments.results, arguments.docs)


def main() -> None:
    assert __doc__
    summary, _, details = __doc__.partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m scripts.evidence.reproduce", description=summary, epilog=details, formatter_class=form
    )
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="where texts and models lie")
    parser.add_argument("--results", type=Path, default=EVIDENCE / "results")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; seeds side by side are the better use of cores"
    )
    commands = parser.add_subparsers(required=True, metavar="CASE")
    case = commands.add_parser("tiny", help="from nothing, many seeds")
    case.set_defaults(run=tiny)
    case.add_argument("--seed", type=int, default=0)
    case.add_argument("--base-steps", type=int, default=800)
    case.add_argument("--chat-steps", type=int, default=200)
    case.add_argument("--asked", type=int, default=128, help="held-out items of each skill for each score")
    case.add_argument("--stranger", type=int, nargs="*", default=[], help="seeds whose bases take the deltas, by force")
    case = commands.add_parser("smol", help="SmolLM2-135M")
    case.set_defaults(run=smol)
    case.add_argument("--seed", type=int, default=0)
    commands.add_parser("minilm", help="fine-tunes that others made").set_defaults(run=minilm)
    case = commands.add_parser("report", help="draw and write")
    case.set_defaults(run=report)
    case.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
