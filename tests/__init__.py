"""The tests: a folder for each package; real servers, real ONNX, real processes."""
