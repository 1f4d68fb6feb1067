"""What a run did, for people (tables, a page) and for machines (JSON). Knows results as data and computes none."""

from __future__ import annotations

from onnxprune.report.documents import text, to_json, write
from onnxprune.report.graph import check_graph_file, graph_text
from onnxprune.report.run import Report
from onnxprune.report.shown import report_html, report_text
from onnxprune.report.summary import frozen, infos, layer_infos, nothing, predicted
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
    "Report",
    "check_graph_file", "frozen", "graph_text", "infos", "layer_infos", "nothing", "predicted", "print_comparison",
    "print_finetuning", "print_inspection", "print_report", "print_sweep", "print_verified", "report_html",
    "report_text", "sweep_line", "text", "to_json", "write",
]  # fmt: skip
