"""Trackers of experiments that others wrote, each behind the same few functions: TensorBoard, trackio, Weights & Biases, MLflow."""
