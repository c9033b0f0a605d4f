"""A network as files that run without this package: torch.export, AOTInductor and ONNX."""
