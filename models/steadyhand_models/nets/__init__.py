"""Networks and their export to ONNX; the only part of this package that needs torch."""
