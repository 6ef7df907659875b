"""Export of STIF to ONNX, ONNX Runtime and TensorRT. Installed as ``stif_export``; ``stif_rt`` does not need it."""
