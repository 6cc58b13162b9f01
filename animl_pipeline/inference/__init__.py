"""The packaged ONNX classifier, and scoring of crops with it."""
