"""`python -m patchnets.demo`: a page in the browser that classifies the image that is dropped on it."""

# Environment in which Gradio and what it builds on send nothing to anybody; they read it when they are imported.
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
