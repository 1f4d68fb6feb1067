"""What a run did, for people (tables, a page) and for machines (JSON). Knows results as data and computes none."""

from __future__ import annotations

from onnxprune.report.documents import check_report_file, document, text, to_json, write
from onnxprune.report.graph import check_graph_file, graph_text
from onnxprune.report.picture import drawn
from onnxprune.report.quality import print_quality
from onnxprune.report.run import Report
from onnxprune.report.sentence import headline
from onnxprune.report.shown import report_html, report_text
from onnxprune.report.summary import branch_infos, caches, frozen, infos, layer_infos, nothing, predicted
from onnxprune.report.tables import (
    print_comparison,
    print_inspection,
    print_report,
    print_sweep,
    print_verified,
    sweep_line,
)
from onnxprune.report.weights import print_finetuning

__all__ = [
    "Report", "branch_infos", "caches",
    "check_graph_file", "check_report_file", "document", "drawn", "frozen", "graph_text", "headline", "infos",
    "layer_infos", "nothing", "predicted", "print_comparison", "print_finetuning", "print_inspection",
    "print_quality", "print_report", "print_sweep", "print_verified", "report_html", "report_text", "sweep_line",
    "text", "to_json", "write",
]  # fmt: skip
