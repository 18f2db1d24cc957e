"""Where trainer and device meet: checkpoint to verified ONNX bundles."""
