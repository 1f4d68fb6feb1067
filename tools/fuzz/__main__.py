"""Look for what onnxprune does wrong: python tools/fuzz graphs | files | kills | mutants | nodes, each with --help."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    files = jobs.add_parser("files", help="damaged files: an answer in one line, or a proven model")
    files.add_argument("folder", type=Path, help="folder of .onnx files to damage")
    files.add_argument("out", type=Path, help="where bad mutants go, with the command that shows what is wrong")
    files.add_argument("--count", type=int, default=2000, help="mutants (2000)")
    files.add_argument("--first", type=int, default=0, help="index of the first one: to go on where a run ended (0)")
    files.add_argument("--seed", type=int, default=0)
    files.add_argument("--only", default="", metavar="DAMAGE", help="one kind of damage, by the name of its function")
    files.add_argument("--slow", type=int, default=10, metavar="N", help="every N-th with the default criterion (10)")
    files.add_argument("--seconds", type=float, default=60, help="bound on the wall time of one (60)")
    files.add_argument("--memory", type=float, default=3, metavar="GB", help="bound on its resident memory (3)")
    files.add_argument("--largest", type=float, default=12, metavar="MB", help="largest file to damage (12)")
    files.add_argument("--limit", type=float, default=1e9, metavar="S", help="begin no mutant after so many seconds")
    graphs = jobs.add_parser("graphs", help="random graphs, pruned and proven")
    graphs.add_argument("out", type=Path, help="where failing graphs go; a run there that was ended goes on")
    graphs.add_argument("--count", type=int, default=10_000, help="graphs (10000)")
    graphs.add_argument("--seed", type=int, default=0, help="of the first batch (0)")
    graphs.add_argument("--only", default="", choices=("open", "closed"), help="one kind (every other batch is open)")
    graphs.add_argument("--limit", type=float, default=1e9, metavar="S", help="begin no batch after so many seconds")
    kills = jobs.add_parser("kills", help="the command is ended while it writes")
    kills.add_argument("--count", type=int, default=100, help="rounds (100)")
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--only", default="", metavar="NAME", help="one kind, such as 'Ctrl-C' or 'while saving'")
    nodes = jobs.add_parser("nodes", help="every node test of the onnx wheel between two layers with weights")
    nodes.add_argument("--out", type=Path, help="where models that fail go")
    nodes.add_argument("--only", default="", metavar="NAME", help="tests whose name holds this")
    nodes.add_argument("--first", type=int, default=0, help="index of the first model (0)")
    nodes.add_argument("--count", type=int, default=0, help="models (0: all)")
    mutants = jobs.add_parser("mutants", help="one parameter at a time cut wrongly: the proof has to catch each")
    mutants.add_argument("folders", type=Path, nargs="*", help="folders of .onnx files; none: those made here")
    mutants.add_argument("--generated", action="store_true", help="those that are made here beside the folders")
    mutants.add_argument("--ratio", type=float, default=0.5, help="share of units that the right result lacks (0.5)")
    mutants.add_argument("--count", type=int, default=0, help="mutants of a network at most (0: all)")
    mutants.add_argument("--seed", type=int, default=0)
    mutants.add_argument("--alone", action="store_true", help="what equivalence on drawn weights catches alone, too")
    mutants.add_argument("--largest", type=float, default=30, metavar="MB", help="largest file (30)")
    mutants.add_argument("--limit", type=float, default=1e9, metavar="S", help="begin no network after so many seconds")
    return parser.parse_args()


def main() -> int:
    args = parse()
    code: int = import_module(args.job).run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
