"""Derivatives by gates on units, without a training framework: onnx-ad differentiates, ONNX Runtime runs.

Knows graphs and gates, no criterion.
"""
