"""Programs as files: ONNX, TVM TIR and the artifact that holds both."""
