"""The packaged ONNX classifier, and scoring with it."""
