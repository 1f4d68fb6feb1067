"""The torch form of every operator that has one, in one table. Knows the names of operators, no graph."""

from __future__ import annotations

from onnxprune.finetuning.operators import layers, moving, pointwise, quantised, recurrent, reducing, windows
from onnxprune.finetuning.operators.call import Call, Form, NoTorchForm
from onnxprune.finetuning.operators.quantised import LIMITS, dequantize, quantize

__all__ = ["FORMS", "LIMITS", "Call", "Form", "NoTorchForm", "dequantize", "quantize"]

FORMS: dict[str, Form] = {
    name: form
    for table in (pointwise, reducing, moving, windows, layers, recurrent, quantised)
    for name, form in table.FORMS.items()
}
