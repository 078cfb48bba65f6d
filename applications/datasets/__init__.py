"""The commands of dataset_tool.py beyond synth and validate, and what they run."""
