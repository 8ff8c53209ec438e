"""Leave torch with proof: ONNX and torch.export files, compared with the network before they are kept."""

from __future__ import annotations

from limbeck.export.exporter import export
from limbeck.export.parity import ExportError, ExportReport, Parity

__all__ = ["ExportError", "ExportReport", "Parity", "export"]
