"""The tests: a file a room; real servers, real ONNX, real processes."""
