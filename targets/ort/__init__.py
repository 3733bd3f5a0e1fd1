"""The saved form itself, run by ONNX Runtime on the CPU: the second oracle."""
