"""Networks as files that others run: ONNX, torch.export, safetensors with a model card."""
