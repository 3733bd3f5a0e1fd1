"""The saved form of a Program: an ONNX file, opset 21, in which a node is a model-local function of domain `isobit`.

A function's body is plain integer ONNX, so any runtime runs the file and gives the reference's integers. `emit` writes
it; `load` rebuilds the Program from the graph and refuses a file that isobit would not write for that Program.
"""
