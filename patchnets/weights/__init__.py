"""Weights in the layouts and file formats of other projects."""

FORMATS = ("timm", "npz", "onnx", "stablehlo")  # in which a model is exported
INPUTS, OUTPUTS = ("float", "uint8", "uint16"), ("logits", "probabilities")  # of the programs among them
